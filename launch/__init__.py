"""Start a run with one command, on one node or on many."""
