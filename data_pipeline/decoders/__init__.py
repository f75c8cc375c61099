"""The bytes of one image file to pixels, one format a file."""
