"""Store uploaded bytes in a temporary directory, which is removed when the server ends."""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

from xnatfs.demo.archive.entries import Entry


class Vault:
    """Stored files, under generated names: no name chosen by a client can reach a file outside."""

    def __init__(self) -> None:
        self._directory: Path | None = None

    def keep(self, path: str, pieces: Iterable[bytes], modified: float) -> Entry:
        """Write the bytes to disk and return a catalogue entry for them.

        Args:
            path: The path of the entry within its resource.
            pieces: The bytes, in order.
            modified: The modification time, in seconds since the epoch.
        """
        digest, size = hashlib.md5(), 0
        with tempfile.NamedTemporaryFile(dir=self._home(), delete=False) as file:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                file.write(piece)
        return Entry(path, Path(file.name), str(size), digest.hexdigest(), modified)

    def drop(self, entries: Iterable[Entry]) -> None:
        """Delete the stored bytes of these entries. Published files outside the vault stay."""
        for entry in entries:
            if isinstance(entry.content, Path) and entry.content.parent == self._directory:
                entry.content.unlink(missing_ok=True)

    def _home(self) -> Path:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="xnatfs-demo-"))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        return self._directory
