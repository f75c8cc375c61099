"""Refuse, before any process group starts, every run that is known not to work."""
