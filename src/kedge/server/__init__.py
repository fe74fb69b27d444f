"""The shell of the control plane."""
