"""Batches to checkpoints: encoders, objectives, engines and the train loop."""
