"""Many nodes over ssh."""
