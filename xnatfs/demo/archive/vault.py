"""Where uploaded bytes are kept: a temporary directory, gone when the server is."""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

from xnatfs.demo.archive.model import Entry


class Vault:
    """Files under names of its own: whatever a client calls them, nothing outside can be reached."""

    def __init__(self) -> None:
        self._directory: Path | None = None

    def keep(self, path: str, pieces: Iterable[bytes], modified: float) -> Entry:
        """A catalogue entry whose bytes are on disk."""
        digest, size = hashlib.md5(), 0
        with tempfile.NamedTemporaryFile(dir=self._home(), delete=False) as file:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                file.write(piece)
        return Entry(path, Path(file.name), str(size), digest.hexdigest(), modified)

    def drop(self, entries: Iterable[Entry]) -> None:
        """Free the bytes; files that were published from elsewhere stay."""
        for entry in entries:
            if isinstance(entry.content, Path) and entry.content.parent == self._directory:
                entry.content.unlink(missing_ok=True)

    def _home(self) -> Path:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="xnatfs-demo-"))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        return self._directory
