"""The fault matrix, cell by cell: `tests/faults/matrix.py` says what comes of each fault in each operation.

Every cell asserts the bytes or the error, that the fault was met, that what is kept afterwards is right, and that
each call ended in time.
"""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.faults import Faulty, faulty
from tests.faults.certificates import expired_certificate, made_certificate
from tests.faults.matrix import HALF, MATCH, MIDDLE, OPERATIONS, ROWS, Row
from tests.faults.programs import PLACE, PROGRAMS, Failed, Program, Seeker, Stage, Wrong
from tests.faults.server import Certificate
from tests.faults.stage import stage_archive
from xnatfs.demo.app import DemoXnat
from xnatfs.demo.server import serve

# A fault that lasts is waited for so long. One that passes must have passed before.
SHORT, LONG = 0.4, 10.0
# What the first download of a seeker brings meanwhile: less than it seeks.
BESIDE = {"fault": "drip", "after": 2**20, "rate": 1_000_000, "ranged": False}

# In a download process, too, a name is not found while there is this file.
BLIND = """
import os, socket
found = socket.getaddrinfo
def getaddrinfo(*args, **more):
    if os.path.exists({path!r}):
        with open({path!r}, "a") as file:
            file.write("asked\\n")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return found(*args, **more)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[DemoXnat, str]]:
    app = DemoXnat(stage_archive())
    with serve(app) as url:
        yield app, url


@pytest.fixture(scope="module")
def server(demo: tuple[DemoXnat, str]) -> Iterator[Faulty]:
    with faulty(demo[1]) as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate, Path]:
    """A good one, one whose time is over, and a bundle that trusts both."""
    directory = tmp_path_factory.mktemp("tls")
    good, bad = made_certificate(directory), expired_certificate(directory)
    bundle = directory / "bundle.pem"
    bundle.write_text(good[0].read_text() + bad[0].read_text())
    return good, bad, bundle


@pytest.fixture(scope="module")
def secure(demo: tuple[DemoXnat, str], certificates: tuple[Certificate, Certificate, Path]) -> Iterator[Faulty]:
    with faulty(demo[1], certificate=certificates[0]) as server:
        yield server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is eleven minutes for changes, because archiving may take ten, and what is looked at every second."""
    monkeypatch.setattr("xnatfs.transport.CHANGE_TIMEOUT", 2 * SHORT)
    monkeypatch.setattr("xnatfs.prearchive.FIRST_LOOK", 0.05)
    monkeypatch.setattr("xnatfs.prearchive.APPEARS_WITHIN", 1.0)
    monkeypatch.setattr("xnatfs.bulk.PATIENCE", 2 * SHORT)


class Scripted:
    """A step of the script. What is common to all faults."""

    def __init__(self, stage: Stage, row: Row, operation: str) -> None:
        self.stage, self.row, self.operation = stage, row, operation

    def begin(self) -> None:
        step: dict[str, Any] = {"match": MATCH[self.operation], **self.row.step}
        for key in ("after", "at"):
            if step.get(key) == HALF:
                step[key] = MIDDLE[self.operation]
        if self.operation == "seek":
            step["ranged"] = True
            step["at"] = step.get("at", 0) and PLACE + 10
        if step["fault"] == "drip":
            step["rate"] = 300_000 if self.operation in ("small", "big", "unranged", "seek") else 500
        self.step = step
        self.stage.server.script([step, {"match": MATCH["seek"], **BESIDE}] if self.operation == "seek" else [step])

    def end(self) -> None:
        self.stage.server.script(())

    def met(self) -> bool:
        ranged = [met for met in self.stage.server.met if met.fault == self.row.step["fault"]]
        return len(ranged) > 0


class Stopped(Scripted):
    """Nobody listens."""

    def begin(self) -> None:
        self.stage.server.stop(keep_sessions=True)

    def end(self) -> None:
        assert self.stage.server.asked == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.stage.server.port))
        self.stage.server.start()

    def met(self) -> bool:
        return True  # see `end`


class Nameless(Scripted, trio.abc.HostnameResolver):
    """Its name is not found: in this process, and in those that carry big files."""

    def hide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage.url = f"http://localhost:{self.stage.server.port}"
        self.blind = self.stage.directory / "blind"
        place = self.stage.directory / "site"
        place.mkdir()
        (place / "sitecustomize.py").write_text(BLIND.format(path=str(self.blind)))
        monkeypatch.setenv("PYTHONPATH", str(place))
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(self, host: Any, port: Any, *more: Any) -> Any:
        if self.blind.exists():
            with self.blind.open("a") as file:
                file.write("asked\n")
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError

    def begin(self) -> None:
        self.blind.touch()
        self.stage.server.stop(keep_sessions=True)  # nobody goes on over a connection that is there
        self.stage.server.start()

    def end(self) -> None:
        self.asked = self.blind.read_text()
        self.blind.unlink()

    def met(self) -> bool:
        return "asked" in self.asked


class Expired(Scripted):
    """Its certificate is over."""

    def take(self, server: Faulty, certificates: tuple[Certificate, Certificate, Path]) -> None:
        self.good, self.bad, bundle = certificates
        self.stage.server, self.stage.url, self.stage.ca_bundle = server, server.url, str(bundle)

    def begin(self) -> None:
        self._show(self.bad)

    def end(self) -> None:
        self._show(self.good)

    def _show(self, certificate: Certificate) -> None:
        self.stage.server.certify(certificate)
        self.stage.server.stop(keep_sessions=True)
        self.stage.server.start()

    def met(self) -> bool:
        return any(met.fault == "tls" for met in self.stage.server.met)


class Forgotten(Scripted):
    """Its sessions are lost, and strangers are welcome."""

    def begin(self) -> None:
        self.stage.app.sessions.require_login = False
        self.stage.server.lose_sessions()

    def end(self) -> None:
        self.stage.app.sessions.require_login = True

    def met(self) -> bool:
        return any(record.user == "guest" for record in self.stage.app.requests)


class Loaded(Scripted):
    """Somebody else's request is under way all the time."""

    def begin(self) -> None:
        super().begin()
        held = {"match": "GET /held", "fault": "stall", "after": -1}
        self.stage.server.script([held, self.step])
        self.link = socket.create_connection(("127.0.0.1", self.stage.server.port))
        self.link.sendall(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        while not self.stage.server.met:
            time.sleep(0.001)

    def end(self) -> None:
        super().end()
        self.link.close()


KINDS = {
    "": Scripted,
    "stopped": Stopped,
    "dns": Nameless,
    "tls": Expired,
    "guest": Forgotten,
    "load": Loaded,
}

CELLS = [(row, operation) for row in ROWS for operation in OPERATIONS if not row.cells[operation].startswith("-")]


@pytest.mark.parametrize(("row", "operation"), [pytest.param(r, o, id=f"{r.key}-{o}") for r, o in CELLS])
async def test_cell(row, operation, demo, server, certificates, secure, tmp_path, monkeypatch):
    app, direct = demo
    timeout = LONG if row.patient else SHORT
    stage = Stage(app, direct, server, server.url, tmp_path, timeout, f"{row.key}-{operation}")
    fault = KINDS[row.stage](stage, row, operation)
    if isinstance(fault, Nameless):
        fault.hide(monkeypatch)
    if isinstance(fault, Expired):
        fault.take(secure, certificates)
    program = PROGRAMS[operation](stage, monkeypatch)
    async with program.opened():
        await program.prepare()
        stage.server.forget()
        app.requests.clear()
        fault.begin()
        try:
            outcome = await outcome_of(program)
            await program.meanwhile()
        finally:
            fault.end()
    assert fault.met()
    expected = row.cells[operation]
    assert outcome == {"again": "right", "otherwise": "right"}.get(expected, expected)
    if expected == "again":
        assert asked_again(stage.server, operation)
    if expected == "otherwise":
        assert sum(asked.path.endswith(".dcm") for asked in stage.server.asked) > 2
    await program.afterwards()


async def outcome_of(program: Program) -> str:
    """As the matrix has it."""
    try:
        await program.run()
    except Failed as failed:
        return failed.outcome
    except Wrong as wrong:
        if isinstance(program, Seeker):
            return await late(program)
        return f"wrong bytes: {wrong}"
    return "right"


async def late(program: Seeker) -> str:
    """Wrong bytes of a range are found out when all has come."""
    try:
        await program.to_the_end()
    except Failed as failed:
        return "late" if failed.outcome == "EIO" else failed.outcome
    return "wrong bytes, and nobody noticed"


def asked_again(server: Faulty, operation: str) -> bool:
    """A request was repeated; who seeks has asked for the file from its start before."""
    paths = [asked.path for asked in server.asked if re.match(MATCH[operation], f"{asked.method} {asked.path}")]
    return any(paths.count(path) > (2 if operation == "seek" else 1) for path in paths)
