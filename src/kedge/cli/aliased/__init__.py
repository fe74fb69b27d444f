"""A directory for the path of commands that run beside a container: its `modal` is kedge."""
