"""Crops and photometric augmentation."""
