"""`eval certificate`: whether a torus head's angles turn with known actions on images, beside baselines."""
