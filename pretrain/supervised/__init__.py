"""Training with labels: what is to be predicted, mixed images, and the score on val."""
