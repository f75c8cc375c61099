"""What a run logged while it trained: its log, the ranges of a healthy run, and the charts of the page."""
