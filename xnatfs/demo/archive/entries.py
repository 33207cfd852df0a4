"""Describe the files of a resource: the entries of its catalogue, and where their bytes are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Computed(Protocol):
    """A file that is stored nowhere: its bytes are computed when they are sent."""

    def __len__(self) -> int: ...

    def pieces(self, start: int, length: int) -> Iterator[bytes]: ...


Content = bytes | Path | Computed | None  # None: the catalogue lists the file, the disk does not have it

MODIFIED = 1704164645.0


@dataclass
class Entry:
    """One catalogue entry. Its size and digest may differ from those of the file."""

    path: str
    content: Content
    size: str
    digest: str
    modified: float = MODIFIED
    tags: str = ""
    format: str = ""
    note: str = ""  # `content`, as the server calls it

    @property
    def lost(self) -> bool:
        """Return true if the file is in the catalogue only."""
        return self.content is None or (isinstance(self.content, Path) and not self.content.is_file())

    def length(self) -> int:
        assert self.content is not None
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)
