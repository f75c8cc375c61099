"""Fine-tuning on masks: the probe that it starts from, the masks that a network predicts, the comparison."""
