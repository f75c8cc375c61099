"""The first steps of a user: a recipe written for a data set and a machine, and the packaged recipes."""
