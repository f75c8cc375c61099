"""The `pack` command: turns a folder of images, or a table that lists images, into shards."""
