"""`isotorus embed` and `isotorus search`: the vectors of a data set in one file, and what is near in it."""
