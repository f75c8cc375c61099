"""What is evaluated, and against what."""
