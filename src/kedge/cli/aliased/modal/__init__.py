"""Imported as `modal` by programs that have the directory above on their path: from then on `modal` is kedge."""

from kedge.sdk import alias

alias.install()
