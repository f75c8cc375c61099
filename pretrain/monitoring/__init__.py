"""What watches a run while it trains: timing, collapse, damaged images, the online probe, traces, MLflow."""
