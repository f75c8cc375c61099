"""Real images for `make quickstart` and `make torus`, from packages that ship them."""
