"""Probes that read the patch tokens of images: attentive, and of masks."""
