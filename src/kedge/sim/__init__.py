"""The same core under virtual time."""
