"""The ranks of one node, under torchrun or DeepSpeed's launcher."""
