"""Random crops and photometric augmentation."""
