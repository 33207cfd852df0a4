"""Define the scope of a run, and the directory it uses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks import archives, rig, site
from scripts.benchmarks.requests import Request
from scripts.benchmarks.rig import Mounted
from scripts.benchmarks.site import PASSWORD, USER, Server


@dataclass(frozen=True)
class Bench:
    """The context of all cases: the directory, and whether the run is a quick one."""

    directory: Path
    quick: bool

    @property
    def big(self) -> int:
        """Return the size of a big file, in bytes."""
        return (64 if self.quick else 1024) * 2**20

    @property
    def times(self) -> int:
        """Return the number of measurements of a fast operation."""
        return 1 if self.quick else 3

    @property
    def wires(self) -> tuple[bool, ...]:
        """Return whether each run of a case is over TLS, as real servers are: a quick run is over TLS only."""
        return (True,) if self.quick else (True, False)

    def one_big(self) -> Path:
        return archives.big(self.directory, self.big)

    def many(self, quick: int, full: int) -> Path:
        return archives.many(self.directory, quick if self.quick else full)

    @contextmanager
    def server(self, *datas: Path, name: str = "site", **options: Any) -> Iterator[Server]:
        """Serve archives until the context ends. `name` distinguishes servers that run at the same time."""
        with site.served(self.directory / name, *datas, **options) as server:
            yield server

    @contextmanager
    def mount(self, server: Server, *options: str, keep: bool = False) -> Iterator[Mounted]:
        with rig.mounted(server, self.directory / "ours", *options, keep=keep) as mount:
            yield mount


def wire(server: Server) -> str:
    """Return the end of the titles of a server's rows."""
    return ", TLS" if server.authority else ""


def same_answers(server: Server, asked: Sequence[Request]) -> str:
    """Return a command that receives the answers to these requests again, all at once."""
    urls = " ".join(f"-o /dev/null '{server.url}{each.uri}'" for each in asked if each.method == "GET")
    return f"{server.curl} -u {USER}:{PASSWORD} -Z {urls}"


def big_file(top: Path, scan: int = 1) -> Path:
    """Return the path of a big file in a session's directory, of a mount or of an archive."""
    return top / "scans" / str(scan) / "RAW" / f"big-{scan}.bin"
