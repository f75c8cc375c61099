"""A folder or manifest of images to shards."""
