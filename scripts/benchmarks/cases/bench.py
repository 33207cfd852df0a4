"""How much is measured, and where."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks import archives, rig, site
from scripts.benchmarks.rig import Mounted
from scripts.benchmarks.site import Server


@dataclass(frozen=True)
class Bench:
    """What all cases know: whether there is time, and a directory."""

    directory: Path
    quick: bool

    @property
    def big(self) -> int:
        """Bytes of a big file."""
        return (64 if self.quick else 1024) * 2**20

    @property
    def times(self) -> int:
        """How often what is quick is measured."""
        return 1 if self.quick else 3

    def one_big(self) -> Path:
        return archives.big(self.directory, self.big)

    def many(self, quick: int, full: int) -> Path:
        return archives.many(self.directory, quick if self.quick else full)

    @contextmanager
    def server(self, *datas: Path, name: str = "site", **options: Any) -> Iterator[Server]:
        """`name` tells apart those that run at the same time."""
        with site.served(self.directory / name, *datas, **options) as server:
            yield server

    @contextmanager
    def mount(self, server: Server, *options: str, keep: bool = False) -> Iterator[Mounted]:
        with rig.mounted(server, self.directory / "ours", *options, keep=keep) as mount:
            yield mount


def big_file(top: Path, scan: int = 1) -> Path:
    """In a session's directory, of a mount or of an archive."""
    return top / "scans" / str(scan) / "RAW" / f"big-{scan}.bin"
