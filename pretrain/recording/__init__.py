"""What rank 0 writes of a run: its folder, its configuration and its log."""
