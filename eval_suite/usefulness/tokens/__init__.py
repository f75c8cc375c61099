"""Probes that read the patch tokens of images: the attentive probe, and the segmentation probe for masks."""
