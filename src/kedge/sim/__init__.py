"""The same plane and the same container sessions under virtual time: seeds, faults, checks, named stories."""
