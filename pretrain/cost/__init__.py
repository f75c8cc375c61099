"""What a run costs before it is started: FLOPs, memory, hours."""
