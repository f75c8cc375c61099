"""One command to processes on one node or many."""
