"""The inputs of an evaluation: checkpoints, data sets, targets, and features made elsewhere."""
