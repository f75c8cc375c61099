"""Cross-validation over the labelled samples of train and val: their division, and what is measured."""
