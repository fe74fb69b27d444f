"""Inside one container."""
