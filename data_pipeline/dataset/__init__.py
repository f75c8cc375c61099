"""What a packed set is on disk, and how it is read."""
