"""Evaluation of checkpoints: usefulness of the features, their geometry, and reports."""
