"""Test the fault matrix, cell by cell: `tests/faults/matrix.py` states the outcome of each fault in each operation.

Every cell is tested at a server that computes digests, and at one that states lengths only. It asserts the bytes or the
error, that the fault was met, that what is cached afterwards is right, and that each call ended in time.
"""

import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.faults import Faulty, faulty
from tests.faults.certificates import expired_certificate, made_certificate
from tests.faults.matrix import HALF, MATCH, MIDDLE, OPERATIONS, OUTCOMES, REASONS, ROWS, Row
from tests.faults.page import PAGE, written
from tests.faults.programs import CONTENTS, PLACE, PROGRAMS, Client, Failed, MiB, Program, Reader, Seeker, Stage, Wrong
from tests.faults.server import Certificate
from tests.faults.stage import EXPERIMENT, FOLDER, USER, stage_archive
from xnatfs.content.writer import Writer
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve
from xnatfs.http.retry import RequestPolicy

# A fault that passes must have passed before that.
LONG = 10.0
# What the first download of a seeker brings meanwhile, in bytes a second: so that a range is faster, or soon there.
SLOW, FAST = 4_000_000, 8_000_000
# How long a server is away that is away for a moment.
PAUSE = 0.2
# Of an answer that drips: so that it takes longer than the timeout, and not for ever.
PACE = {
    "list": 9000,
    "small": 150_000,
    "big": 4_000_000,
    "unranged": 3_000_000,
    "seek": 20_000,
    "tar": 600_000,
    "login": 10,
}

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
    """Provide a good certificate, an expired one, and a bundle that trusts both."""
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
    """Shorten polling intervals of a second, and waits that are longer than a test."""
    monkeypatch.setattr("xnatfs.rest.prearchive.FIRST_POLL_SECONDS", 0.05)
    monkeypatch.setattr("xnatfs.rest.prearchive.APPEARS_WITHIN_SECONDS", 1.0)
    monkeypatch.setattr("xnatfs.prefetch.series_tar.MEMBER_WAIT_SECONDS", 0.8)


class Scripted:
    """A step of the script, with what is common to all faults."""

    def __init__(self, stage: Stage, row: Row, operation: str) -> None:
        self.stage, self.row, self.operation = stage, row, operation
        self.match = MATCH[operation]

    async def before(self, program: Program) -> None:
        """Do what the program has done before the fault."""

    def begin(self) -> None:
        step: dict[str, Any] = {"match": self.match, **self.row.step}
        for key in ("after", "at"):
            if step.get(key) == HALF:
                step[key] = MIDDLE[self.operation]
        if step["fault"] == "drip" and not step["rate"]:
            step["rate"] = PACE.get(self.operation, 5000)
        if "at" in step and self.operation in ("seek", "unranged"):
            step["at"] = PLACE + 10
        self.step, steps = step, [step]
        if self.operation == "seek":
            step["ranged"] = True
            beside = FAST if self.row.stage == "unranged" else SLOW
            steps.append({"match": MATCH["seek"], "fault": "drip", "after": 2**20, "rate": beside, "ranged": False})
        self.stage.server.script(steps)

    def end(self) -> None:
        self.stage.server.script(())
        self.stage.server.start()  # where the step has stopped it

    def met(self) -> bool:
        return self._met(self.step["fault"], MATCH[self.operation])

    def asked_again(self) -> bool:
        """Return whether a request was repeated; a seek comes after a request for the file from its start."""
        asked = [(each.method, each.path) for each in self.stage.server.asked]
        paths = [path for method, path in asked if re.match(MATCH[self.operation], f"{method} {path}")]
        return any(paths.count(path) > (2 if self.operation == "seek" else 1) for path in paths)

    def _met(self, fault: str, match: str) -> bool:
        return any(m.fault == fault and re.match(match, f"{m.method} {m.path}") for m in self.stage.server.met)


class Agreed(Scripted):
    """A fault that HEAD requests meet as well."""

    def __init__(self, stage: Stage, row: Row, operation: str) -> None:
        super().__init__(stage, row, operation)
        self.match = self.match.replace("GET", "(GET|HEAD)")


class Swapped(Scripted):
    """A connection that breaks in the middle of a file, which is another file from then on."""

    def begin(self) -> None:
        breaks = {"fault": "cut", "after": MIDDLE[self.operation], "times": 1}
        if self.operation == "big" and not self.stage.app.site.digests:
            breaks["times"] = 2  # the first one is of a range, which is not used: it says nothing of its version
        common = {"match": self.match, "ranged": True} if self.operation == "seek" else {"match": self.match}
        steps: list[dict[str, Any]] = [
            {**common, **breaks, **self.row.step},
            {**common, "fault": "changed", **self.row.step},
        ]
        if self.operation == "seek":
            steps.append({"match": self.match, "fault": "drip", "after": 2**20, "rate": FAST, "ranged": False})
        self.stage.server.script(steps)

    def met(self) -> bool:
        return self._met("cut", self.match)


class Stopped(Scripted):
    """A server that does not listen."""

    def begin(self) -> None:
        self.stage.server.stop(keep_sessions=True)
        self.stage.server.wait_until_idle()
        self.stage.server.forget()

    def end(self) -> None:
        try:
            assert not any(asked.status for asked in self.stage.server.asked)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.stage.server.port))
        finally:
            self.stage.server.start()

    def met(self) -> bool:
        return True  # see `end`


class Paused(Stopped):
    """A server that does not listen for a moment."""

    def begin(self) -> None:
        super().begin()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.stage.server.port))
        self.began = time.monotonic()
        self.timer = threading.Timer(PAUSE, self.stage.server.start)
        self.timer.start()

    def end(self) -> None:
        self.seconds = time.monotonic() - self.began
        self.timer.cancel()  # else it may start the server of the next cell
        self.timer.join()
        self.stage.server.start()

    def met(self) -> bool:
        """Return whether clients had to wait, or were refused at once."""
        return self.operation == "login" or self.seconds >= PAUSE


class Nameless(Scripted, trio.abc.HostnameResolver):
    """A host name that is not found: in this process, and in those that carry big files."""

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
        self.stage.server.stop(keep_sessions=True)  # no client goes on over an open connection
        self.stage.server.start()

    def end(self) -> None:
        self.asked = self.blind.read_text()
        self.blind.unlink()

    def met(self) -> bool:
        return "asked" in self.asked


class Expired(Scripted):
    """A server whose certificate has expired."""

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
        """Wait for the server's side of the handshake, which may end after that of the client."""
        server = self.stage.server
        with server.changed:
            return server.changed.wait_for(lambda: any(met.fault == "tls" for met in server.met), 10)


class Forgotten(Scripted):
    """A server that has lost its sessions and serves guests."""

    def begin(self) -> None:
        self.stage.app.site.require_login = False
        self.stage.server.lose_sessions()

    def end(self) -> None:
        self.stage.app.site.require_login = True

    def met(self) -> bool:
        return bool(self._answered("guest"))

    def asked_again(self) -> bool:
        """Return whether each request that a guest's reply came for was repeated by the user."""
        return self._answered("guest") <= self._answered(USER)

    def _answered(self, user: str) -> set[str]:
        asked = [each.path for each in self.stage.app.requests if each.user == user and each.method != "DELETE"]
        return {path for path in asked if path.startswith(("/data/projects", "/data/experiments", "/data/services"))}


class Jumped(Scripted):
    """A clock of this machine that jumps, after all was read. Bytes go by dates where there are no digests."""

    async def before(self, program: Program) -> None:
        assert isinstance(program, Reader)
        self.site = program.site
        await (program.to_the_end() if isinstance(program, Seeker) else program.run())

    def begin(self) -> None:
        self.site.content.clock = lambda: time.time() + self.row.step["by"]

    def end(self) -> None:
        """Leave the clock as it is."""

    def met(self) -> bool:
        """Return whether the server was asked to revalidate, where no digest tells."""
        records = self.stage.app.requests
        asked = any(record.method == "HEAD" or "if-modified-since" in record.headers for record in records)
        return asked != self.stage.app.site.digests


class Loaded(Scripted):
    """A server with a request of another client under way all the time."""

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
    "unranged": Scripted,
    "stopped": Stopped,
    "paused": Paused,
    "dns": Nameless,
    "tls": Expired,
    "guest": Forgotten,
    "load": Loaded,
    "jump": Jumped,
    "agreed": Agreed,
    "swapped": Swapped,
}

CELLS = [
    pytest.param(row, operation, digests, cells[operation], id=f"{row.key}-{operation}" + "-no digests" * (not digests))
    for digests in (True, False)
    for row in ROWS
    for cells in [row.cells if digests else row.undigested]
    for operation in OPERATIONS
    if not cells[operation].startswith("-")
]


@pytest.mark.parametrize(("row", "operation", "digests", "expected"), CELLS)
async def test_cell(row, operation, digests, expected, demo, server, certificates, secure, tmp_path, monkeypatch):
    app, direct = demo
    stage = Stage(app, direct, server, server.url, tmp_path, LONG, f"{row.key}-{operation}-{digests}")
    fault = KINDS[row.stage](stage, row, operation)
    if isinstance(fault, Nameless):
        fault.hide(monkeypatch)
    if isinstance(fault, Expired):
        fault.take(secure, certificates)
    monkeypatch.setattr(app.site, "digests", digests)
    program = PROGRAMS[operation](stage, monkeypatch)
    if row.lasting:
        monkeypatch.setattr("xnatfs.http.transport.CHANGE_TIMEOUT_SECONDS", 2 * row.lasting)
    async with program.opened():
        await program.prepare()
        await fault.before(program)
        stage.server.forget()
        app.requests.clear()
        if row.lasting and (
            operation != "tar" or expected == "EHOSTUNREACH"
        ):  # else a tar is given up by another limit
            hasten(program, row.lasting)
        fault.begin()
        try:
            outcome = await outcome_of(program)
            stage.as_sent = outcome == "as sent"
            await program.meanwhile()
        finally:
            fault.end()
    assert fault.met(), f"the fault was not met: {outcome}"
    assert outcome in ("right" if expected in ("again", "otherwise") else expected).split("/")
    if expected == "again":
        assert fault.asked_again()
    if expected == "otherwise":
        assert sum(asked.path.endswith(".dcm") for asked in stage.server.asked) >= 2
    stage.timeout = LONG
    await program.afterwards()


@pytest.mark.parametrize("fault", ["corrupt", "range-shifted", "changed"])
async def test_a_strict_mount_hands_out_no_byte_that_is_not_verified(fault, demo, server, tmp_path, monkeypatch):
    app, direct = demo
    stage = Stage(app, direct, server, server.url, tmp_path, LONG, "", strict=True)
    program = PROGRAMS["seek"](stage, monkeypatch)
    async with program.opened():
        await program.prepare()
        server.forget()
        server.script([{"match": MATCH["seek"], "fault": fault, "at": PLACE + 10}])
        outcome = await outcome_of(program)
        server.script(())
    if fault == "range-shifted":  # it asks for none
        assert (outcome, server.met) == ("right", [])
    else:
        assert (outcome, {met.fault for met in server.met}) == ("EIO", {fault})
    await program.afterwards()


@pytest.mark.parametrize("order", ["forward", "backward", "tail first", "random", "two"])
async def test_no_order_of_reading_gives_all_of_a_damaged_file(order, demo, server, tmp_path, monkeypatch):
    """Withhold some bytes in any order until the verdict: a big file is fetched by a process."""
    verify = Writer.verify

    async def verify_late(intake: Writer) -> None:
        """Verify when each reader has been given all that it may be given without a verdict."""
        await trio.testing.wait_all_tasks_blocked()
        await verify(intake)

    monkeypatch.setattr(Writer, "verify", verify_late)
    app, direct = demo
    stage = Stage(app, direct, server, server.url, tmp_path, LONG, "")
    program = PROGRAMS["big"](stage, monkeypatch)
    assert isinstance(program, Reader)
    path = f"{FOLDER}/big.bin"
    places = list(range(len(CONTENTS[path]) % MiB - MiB, len(CONTENTS[path]), MiB))  # all of the last one is there
    orders = {
        "forward": [places],
        "backward": [places[::-1]],
        "tail first": [places[-1:] + places[:-1]],
        "random": [random.Random(1).sample(places, len(places))],
        "two": [places, places[::-1]],
    }
    handed: set[int] = set()
    failed: list[str] = []

    async def read(order: list[int]) -> None:
        for place in order:
            try:
                await program.call(program.ops.read(info.fh, max(0, place), MiB if place > 0 else MiB + place))
                handed.add(place)
            except Failed as failure:
                failed.append(failure.outcome)

    entry = next(e for e in app.archive.experiments[EXPERIMENT].resources[0].entries if e.path == "big.bin")
    monkeypatch.setattr(entry, "digest", "1" * 32)
    async with program.opened():
        await program.prepare()
        server.forget()
        # So that what is asked for by a range is there before all else.
        server.script([{"match": MATCH["big"], "fault": "drip", "after": 2**20, "rate": FAST, "ranged": False}])
        info = await program.open(path)
        async with trio.open_nursery() as nursery:
            for each in orders[order]:
                nursery.start_soon(read, each)
        await program.ops.release(info.fh)
        server.script(())
        assert set(failed) == {"EIO"}
        assert handed < set(places), "all of it was read"


def test_every_cell_is_known_and_tested():
    assert len({row.key for row in ROWS}) == len(ROWS)
    found = [(row.key, cell) for row in ROWS for cells in (row.cells, row.undigested) for cell in cells.values()]
    for key, cell in found:
        assert all(each in OUTCOMES or each in REASONS for each in cell.split("/")), (key, cell)
    assert not any("as sent" in cell for row in ROWS for cell in row.cells.values()), "a digest tells"
    used = {each for _, cell in found for each in cell.split("/")}
    assert used == OUTCOMES.keys() | REASONS.keys()


def test_the_page_has_this_matrix():
    """Compare the page with the one that `python -m tests.faults.page` writes."""
    assert PAGE.read_text() == written(PAGE.read_text())


def hasten(program: Program, seconds: float) -> None:
    """Shorten the timeout from now on: preparing must not depend on how busy the machine is."""
    assert isinstance(program, Reader | Client)
    transport = (program.site.xnat if isinstance(program, Reader) else program.xnat)._transport
    transport.policy, program.stage.timeout = RequestPolicy(seconds, seconds), seconds
    transport._clients.http.timeout = httpx.Timeout(seconds, pool=None)


async def outcome_of(program: Program) -> str:
    """Return the outcome in the words of the matrix."""
    try:
        await program.run()
    except Failed as failed:
        return failed.outcome
    except Wrong as wrong:
        assert isinstance(program, Reader)
        return "as sent" if program.is_as_sent() else f"wrong bytes: {wrong}"
    return "right"
