"""Estimate what a run costs before it starts: FLOPs, memory, hours, and advice when memory is too small."""
