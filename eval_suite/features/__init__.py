"""A checkpoint and images to vectors."""
