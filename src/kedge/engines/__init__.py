"""How containers come to exist."""
