"""Removing directories with all in them, whatever code has made of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress

_NULL = subprocess.DEVNULL


def remove(path: str) -> None:
    """Removes a directory, or a file or link, as far as the system lets this process: also where code has taken its
    own rights away, and however deep it has gone. Links are not followed."""
    if os.path.islink(path) or not os.path.isdir(path):
        with suppress(OSError):
            os.unlink(path)
        return
    with suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    # None of these knows a deepest level. Rights change last: files may have other names elsewhere.
    for command in (("rm", "-rf"), ("chmod", "-R", "u+rwX"), ("rm", "-rf")):
        if not os.path.lexists(path):
            return
        with suppress(OSError):
            subprocess.run([*command, "--", path], stdin=_NULL, stdout=_NULL, stderr=_NULL, check=False)
