"""The ranks of one node, started by torchrun or by DeepSpeed's launcher."""
