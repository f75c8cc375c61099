"""How a training process starts, locks its run folder, reacts to signals and to lost ranks, and ends."""
