"""Encoder and projector."""
