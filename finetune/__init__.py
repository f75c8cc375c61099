"""Fine-tuning: a pretrained encoder learns to predict labels, and is compared with simpler baselines."""
