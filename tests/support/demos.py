"""Serve the demo on a real socket, in this process or in one of its own, and inspect what tests want to know of it."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.manifest import ManifestEntry, manifest
from xnatfs.demo.fixtures.folder import publish
from xnatfs.demo.fixtures.lab import BIG_PROJECT, PASSWORDS, DemoArchive
from xnatfs.demo.server.app import DemoXnat, Record
from xnatfs.demo.server.reply import Reply, Slice
from xnatfs.demo.server.socket import serve

USER = "demo-owner"


@dataclass
class Demo:
    """A demo that is served."""

    url: str
    app: DemoXnat
    archive: DemoArchive
    big_project: str = BIG_PROJECT
    login: dict[str, str] = field(default_factory=lambda: {"user": USER, "password": PASSWORDS[USER]})

    def __post_init__(self) -> None:
        self.manifest: list[ManifestEntry] = manifest(self.archive, USER)

    @property
    def planted_warnings(self) -> list[str]:
        """Return what a log must say when everything is read: of each file that cannot be."""
        return ["but has lost it", "its MD5 is"]

    def requests(self) -> list[Record]:
        """Return the requests apart from those for the session itself."""
        return [record for record in self.app.requests if not record.path.endswith("/JSESSION")]

    def asked(self) -> list[str]:
        return [f"{record.method} {record.path}" for record in self.requests()]

    def forget_requests(self) -> None:
        self.app.requests.clear()

    def count_sent(self) -> list[int]:
        """Count what is sent of files from now on, by the pieces that the server has written."""
        sent: list[int] = []
        handle = self.app.handle

        def counting(*request: Any) -> Reply:
            reply = handle(*request)
            if isinstance(reply.body, Slice):
                reply.body = _Counted(reply.body.content, reply.body.start, reply.body.length, sent)
            return reply

        self.app.handle = counting  # type: ignore[method-assign, assignment]
        return sent

    def logins(self) -> int:
        """Count the logins since the requests were last forgotten, and the one that the mount began with."""
        again = [r for r in self.app.requests if r.path.endswith("/JSESSION") and r.method == "POST"]
        return 1 + len(again)

    def sessions(self) -> int:
        return self.app.sessions.alive(USER)

    def sizeless(self, session: tuple[str, ...]) -> int:
        """Count the files of one session whose size the catalogue does not state."""
        experiments = self.archive.experiments_in(session[1])
        (found,) = [e for e, label in experiments if label == session[3] and not e.session]
        resources = [r for s in found.scans for r in s.resources] + found.resources
        return sum(entry.size == "" for r in resources for entry in r.entries)

    def wrong_digest(self, entry: ManifestEntry) -> bool:
        return entry.path[-1].startswith("wrong-digest")


@dataclass(frozen=True)
class _Counted(Slice):
    sent: list[int]

    def pieces(self) -> Iterator[bytes]:
        for piece in super().pieces():
            yield piece
            self.sent.append(len(piece))  # asked for the next one, so this one is written


@contextmanager
def serving(
    data: Path | None = None,
    certificate: tuple[Path, Path] | None = None,
    change: Callable[[DemoArchive], None] = lambda archive: None,
    **options: Any,
) -> Iterator[Demo]:
    """Serve the demo's own archive, changed, or a directory instead, on a loopback port."""
    archive = DemoArchive(empty=data is not None)
    change(archive)
    if data is not None:
        publish(archive, data, {USER: "Owners"})
    app = DemoXnat(archive, **options)
    with serve(app, certificate=certificate) as url:
        yield Demo(url, app, archive)


class DemoProcess:
    """A demo in a process of its own, which can be stopped in two ways."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start again on the same port."""
        port = ["--port", self.url.rpartition(":")[2]] if self.url else []
        command = [sys.executable, "-P", "-m", "xnatfs.demo", "--only-data", "--data", str(self._data), "--until-eof"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*command, *port], stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def stop(self) -> None:
        """Stop listening."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def freeze(self) -> None:
        """Accept connections, and send nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def back(self, how: str) -> None:
        self.thaw() if how == "freeze" else self.start()
