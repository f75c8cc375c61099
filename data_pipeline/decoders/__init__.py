"""Decode the bytes of one image file to pixels, with one module for each file format."""
