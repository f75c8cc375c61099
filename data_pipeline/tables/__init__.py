"""Tables that describe images: what is in their cells, and how they are read."""
