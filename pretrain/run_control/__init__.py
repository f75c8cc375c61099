"""How a process starts, holds its run folder, hears signals and other ranks, and ends."""
