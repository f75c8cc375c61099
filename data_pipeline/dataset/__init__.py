"""The files of a packed data set, and how they are read."""
