"""`isotorus who-saw`: name the runs and checkpoints that trained on some images."""
