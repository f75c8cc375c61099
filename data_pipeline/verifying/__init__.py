"""The `verify` command: checks whether a data set still is what was published."""
