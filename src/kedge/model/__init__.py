"""The vocabulary: ids, specs and messages. Frozen values without behaviour."""
