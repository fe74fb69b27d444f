"""The decisions: one reducer, pure and synchronous."""
