"""The `index` command: makes a data set of tar files that other programs wrote."""
