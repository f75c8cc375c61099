"""Copy a run to an object store while it trains, and continue it from there if the disk is gone."""
