"""Install other people's programs, each in an environment of its own in the user's cache directory.

An environment is there or it is not: what an interrupted installation left is made anew.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.real_data import WITHOUT, cache_directory, locked_cache

needs_registry = [
    pytest.mark.fuse,
    pytest.mark.real_data,
    pytest.mark.skipif(os.environ.get(WITHOUT) == "1", reason=f"{WITHOUT}=1: asked to leave out what is downloaded"),
]


def environment_with(name: str, requirements: Sequence[str]) -> Path:
    """Return the directory of its programs. The first call installs; as requirements are pinned, later ones do not."""
    pinned = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    directory = cache_directory().parent / "environments" / f"{name}-{pinned}"
    complete = directory / "complete"
    with locked_cache():
        if not complete.exists():
            shutil.rmtree(directory, ignore_errors=True)
            _run(sys.executable, "-m", "venv", directory)
            _run(directory / "bin" / "pip", "install", "--quiet", *requirements)
            complete.touch()
    return directory / "bin"


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        pytest.fail(f"{command[-1]} cannot be installed ({last}); to leave out the tests that need it, set {WITHOUT}=1")
