"""Run the readers' programs one at a time, compare all bytes they read, and record all errors they report.

The programs are common ones, cp, dd, find, tar and cat, and a process that maps a file, which SIGBUS kills if a page is
unavailable. They run in the locale C.UTF-8, since their messages are parsed.
"""

import contextlib
import errno
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from scripts.stressing.archive import PROJECT, STILL, File, files, still
from scripts.stressing.contents import BLOCK, Wrong, check, version_in

ENV = {**os.environ, "LC_ALL": "C.UTF-8"}
ERRNOS = {os.strerror(number): name for number, name in errno.errorcode.items()}
# tar's message for a file that changed while it was read, and cp's for a file that was replaced.
CHANGED = re.compile(r"file changed as we read it|as it was replaced while being copied")
# tar's message for fewer bytes than the file's size: it was truncated, or the next read failed. For an error within its
# buffer of 10 KB it reports nothing else.
SHRANK = re.compile(r"File shrank by (\d+) bytes?; padding with zeros")
# tar's message for ENOENT on a file that it has seen in a listing.
REMOVED = "File removed before we read it"
# Seconds that a killed program may take to end; if it takes longer, it is blocked in the kernel.
DYING = 15.0


@dataclass
class Event:
    """One result or error of a program. `path` is relative to the project's directory."""

    program: str
    path: str
    began: float  # of the clock that all processes share, as the next
    ended: float
    version: int | None = None  # of the bytes read; None if there were none
    bytes: int = 0
    error: str = ""  # the name of an errno
    missing: int = 0  # bytes at the end of the data that zeros replace
    wrong: str = ""  # the violation of an invariant


Log = Callable[[Event], None]


class Reader:
    """The context of the programs: the mount, a random generator, a directory for copies, and the log of events.

    Args:
        top: The directory of projects.
        sessions: The number of sessions of the working set.
        seed: The seed of the random generator.
        place: The directory for copies.
        log: Receives each event.
    """

    def __init__(self, top: Path, sessions: int, seed: str, place: Path, log: Log) -> None:
        self.top = top / PROJECT
        self.still = top / STILL
        self.files = files(sessions)
        self.chance = random.Random(seed)
        self.place = place
        self.log = log
        self._by_resource: dict[str, list[File]] = {}
        for file in self.files.values():
            self._by_resource.setdefault(file.resource, []).append(file)

    def session(self) -> str:
        """Choose a session. The first one is frequent, so that there are cache hits."""
        found = sorted({file.session for file in self.files.values()})
        return found[0] if self.chance.random() < 0.3 else self.chance.choice(found)

    def resource(self, *names: str) -> str:
        return f"{self.session()}/{self.chance.choice(names)}"

    def within(self, resource: str) -> list[File]:
        return self._by_resource[resource]

    def file(self, *resources: str) -> File:
        return self.chance.choice(self.within(self.resource(*resources)))

    def some(self, count: int) -> list[File]:
        return self.chance.sample(list(self.files.values()), count)


SMALL = ("scans/1/DICOM", "scans/2/RAW", "resources/notes")
MEDIUM = ("scans/5/NIFTI",)
BIG = ("scans/3/NIFTI", "scans/4/RAW")
# Files that the mount makes from listings; the model knows those of resources only.
MADE = {"session.json", "session.xml", "scans.tsv", "subjects.tsv", "sessions.tsv"}


# -- programs --------------------------------------------------------------------------------------------------------


def cp(reader: Reader) -> None:
    """Copy a directory or a file."""
    if reader.chance.random() < 0.5:
        wanted = [reader.file(*SMALL, *MEDIUM)]
        source = wanted[0].path
    else:
        source = reader.resource("scans/1/DICOM", "scans/2/RAW", "scans/2/RAW", *MEDIUM, "resources/notes")
        wanted = reader.within(source)
    target = reader.place / "copy"
    began = time.monotonic()
    errors = _run(reader, "cp", ["cp", "-r", str(reader.top / source), str(target)], began, source)
    for file in wanted:
        copied = target if file.path == source else target / file.path.removeprefix(f"{source}/")
        if not _met(errors, file.path):
            _compare(reader, "cp", file, copied, began)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def dd(reader: Reader) -> None:
    """Read some ranges of a file, with one process each."""
    file = reader.file(*BIG, *BIG, *MEDIUM, "scans/1/DICOM")
    for _ in range(reader.chance.randrange(2, 6)):
        count = reader.chance.choice([2, 8, 64])
        place = reader.chance.randrange(file.base // BLOCK + 1)
        if reader.chance.random() < 0.2:
            place = max(0, file.base // BLOCK - 1)  # the tail, which some programs read first
        began = time.monotonic()
        words = ["dd", f"if={reader.top / file.path}", f"bs={BLOCK}", f"skip={place}", f"count={count}", "status=none"]
        words += ["iflag=fullblock"]  # an error within a block is a short read first, which dd would count as a block
        data, errors = _output(reader, "dd", words, began, file.path)
        if not errors:
            _part(reader, "dd", file, data, place * BLOCK, count * BLOCK, began)


def find(reader: Reader) -> None:
    """List all names and sizes of one session or of all. It reads no file."""
    below = reader.session() if reader.chance.random() < 0.8 else ""
    began = time.monotonic()
    where = str(reader.top / below) if below else str(reader.top)
    told, errors = _output(reader, "find", ["find", where, "-type", "f", "-printf", "%p\\t%s\\n"], began, below)
    ended = time.monotonic()
    seen = {}
    for line in told.decode("utf-8", "surrogateescape").splitlines():
        path, _, size = line.rpartition("\t")
        if path.rpartition("/")[2] in MADE:
            continue
        seen[path.removeprefix(f"{reader.top}/")] = int(size)
    wanted = {path: file for path, file in reader.files.items() if path.startswith(below)}
    for path in seen.keys() - wanted.keys():
        reader.log(Event("find", path, began, ended, wrong=f"{path} is listed, and does not exist"))
    for path, file in wanted.items():
        if path not in seen:
            if not _met(errors, path):
                reader.log(Event("find", path, began, ended, wrong=f"{path} is not listed, and nothing was said"))
        elif seen[path] not in (file.size(0), file.size(2)):
            reader.log(Event("find", path, began, ended, wrong=f"{path} is listed with {seen[path]} bytes"))
    reader.log(Event("find", below, began, ended, bytes=len(seen)))


def tar(reader: Reader) -> None:
    """Archive a resource, or a whole session without its largest files."""
    top = reader.session()
    wholly = reader.chance.random() < 0.3
    resources = [f"{top}/{name}" for name in (*SMALL, *MEDIUM)] if wholly else [reader.resource(*SMALL, *MEDIUM)]
    began = time.monotonic()
    read: set[str] = set()
    bad: list[tuple[Event, bytes]] = []
    with _started(["tar", "cf", "-", "-C", str(reader.top), *resources]) as running:
        assert running.stdout is not None
        with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=running.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile():
                    found = archive.extractfile(member)
                    assert found is not None
                    data = found.read()
                    event = _member(reader, member.name, data, began)
                    if event.wrong:
                        bad.append((event, data))
                    else:
                        reader.log(event)
                    read.add(member.name)
        while running.stdout.read(2**20):
            """Drain the pipe."""
        errors = _said(reader, "tar", running, began, resources[0])
    for event, data in bad:
        if missing := errors.get(event.path, 0):
            if before := data[:-missing]:
                _part(reader, "tar", reader.files[event.path], before, 0, len(before), began)
        elif not _met(errors, event.path):
            reader.log(event)
    for each in resources:
        for file in reader.within(each):
            if file.path not in read and not _met(errors, file.path):
                wrong = f"{file.path} is not in the tar, and nothing was said"
                reader.log(Event("tar", file.path, began, time.monotonic(), wrong=wrong))


def _member(reader: Reader, name: str, data: bytes, began: float) -> Event:
    """Check a member of the tar. The caller logs an error unless tar reports it itself."""
    file = reader.files.get(name)
    if file is None:
        return Event("tar", name, began, time.monotonic(), wrong=f"{name} is in the tar, and does not exist")
    return _whole("tar", file, data, began)


def mapped(reader: Reader) -> None:
    """Read some pages of a mapped file, in a child process, since SIGBUS may kill it."""
    file = reader.file(*BIG, *MEDIUM, *SMALL[:2])
    seed = reader.chance.random()
    began = time.monotonic()
    told, telling = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        _map(reader.top / file.path, file, seed, telling)
    os.close(telling)
    try:
        with open(told, "rb") as answers:
            said = answers.read().decode()
        _, status = os.waitpid(child, 0)
        child = 0
    finally:
        if child:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it may have ended already
                os.kill(child, signal.SIGKILL)
                _reap(child)
    ended = time.monotonic()
    kind, _, text = said.partition(" ")
    if os.WIFSIGNALED(status):
        killed = os.WTERMSIG(status)
        wrong = "" if killed == signal.SIGBUS else f"{file.path}: the process that maps it was ended by signal {killed}"
        reader.log(Event("mmap", file.path, began, ended, error="EIO", wrong=wrong))  # SIGBUS is the only report
    elif kind == "read":
        version, count = map(int, text.split())
        reader.log(Event("mmap", file.path, began, ended, version, count))
    elif kind == "error":
        reader.log(Event("mmap", file.path, began, ended, error=text))
    else:
        reader.log(Event("mmap", file.path, began, ended, wrong=text or f"{file.path}: {status}"))


def _map(path: Path, file: File, seed: float, telling: int) -> None:
    """Read the pages in the child process, and exit."""
    chance = random.Random(seed)
    said = ""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # SIGBUS is an expected result: no core dump
    try:
        with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as memory:
            size, count, version = len(memory), 0, version_in(memory[: 2 * BLOCK], 0)
            _is_version(file, version, size)
            assert version is not None
            for _ in range(chance.randrange(3, 20)):
                start = chance.randrange(size)
                data = memory[start : start + chance.choice([1000, 4096, 50_000])]
                check(file.path, data, start, version)
                count += len(data)
        said = f"read {version} {count}"
    except Wrong as error:
        said = f"wrong {error}"
    except OSError as error:
        said = f"error {errno.errorcode.get(error.errno or 0, str(error))}"
    except BaseException as error:
        said = f"failed {error!r}"
    os.write(telling, said.encode()[:60_000])
    os._exit(0)


def killed(reader: Reader) -> None:
    """Kill a program in the middle of a file. Other readers must not be affected."""
    file = reader.file(*BIG, *MEDIUM)
    wanted = reader.chance.randrange(BLOCK, file.base // 2)
    began = time.monotonic()
    with _started(["cat", str(reader.top / file.path)]) as running:
        assert running.stdout is not None
        data = running.stdout.read(wanted)
        if len(data) < wanted and _said(reader, "killed", running, began, file.path):
            return
        _part(reader, "killed", file, data, 0, wanted, began)
        running.kill()
        _end(reader, "killed", running, file.path, began)


def stat(reader: Reader) -> None:
    """Time `stat` of cached names: a first `stat` in the same directory has fetched its listing."""
    names = still()
    for _ in range(20):
        first, second = reader.chance.sample(names, 2)
        with contextlib.suppress(OSError):  # the other programs report errors
            os.stat(reader.still / first)
            began = time.monotonic()
            os.stat(reader.still / second)
            reader.log(Event("stat", second, began, time.monotonic()))
        time.sleep(0.03)


def cat(reader: Reader, file: File) -> None:
    """Read one file from end to end."""
    began = time.monotonic()
    data, errors = _output(reader, "cat", ["cat", str(reader.top / file.path)], began, file.path)
    if not errors:
        reader.log(_whole("cat", file, data, began))


PROGRAMS = {"cp": cp, "dd": dd, "find": find, "tar": tar, "mmap": mapped, "killed": killed}
WEIGHTS = [5, 6, 2, 3, 4, 2]


# -- what was read ---------------------------------------------------------------------------------------------------


def _compare(reader: Reader, program: str, file: File, copied: Path, began: float) -> None:
    try:
        data = copied.read_bytes()
    except FileNotFoundError:
        wrong = f"{file.path} was not copied, and nothing was said"
        reader.log(Event(program, file.path, began, time.monotonic(), wrong=wrong))
        return
    reader.log(_whole(program, file, data, began))


def _whole(program: str, file: File, data: bytes, began: float) -> Event:
    """Check a file that was read from end to end, and return the event."""
    version = version_in(data, 0)
    event = Event(program, file.path, began, time.monotonic(), version, len(data))
    try:
        _is_version(file, version, len(data))
        if version is not None:
            check(file.path, data, 0, version)
    except Wrong as error:
        event.wrong = str(error)
    return event


def _is_version(file: File, version: int | None, size: int) -> None:
    """Raise Wrong unless the size is that of this version of the file."""
    if version is None:
        if size or file.base:
            raise Wrong(f"{file.path}: {size} bytes, which do not begin as any version does")
    elif size != file.size(version):
        raise Wrong(f"{file.path}: {size} bytes, of version {version}, which has {file.size(version)}")


def _part(reader: Reader, program: str, file: File, data: bytes, offset: int, wanted: int, began: float) -> None:
    """Check a range: its bytes, and that none are missing before its end or the file's."""
    ended = time.monotonic()
    version = version_in(data, offset)
    event = Event(program, file.path, began, ended, version, len(data))
    if version is None:
        if data or offset < file.base:
            event.wrong = f"{file.path}: {len(data)} bytes from {offset}, of no version"
    else:
        there = min(wanted, max(0, file.size(version) - offset))
        try:
            check(file.path, data, offset, version)
            if len(data) != there:
                raise Wrong(f"{file.path}: {len(data)} bytes from {offset} of version {version}, which has {there}")
        except Wrong as error:
            event.wrong = str(error)
    reader.log(event)


# -- processes -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _started(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program; it has ended when the context ends."""
    running = subprocess.Popen(words, env=ENV, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(DYING)
        for pipe in (running.stdout, running.stderr):
            assert pipe is not None
            pipe.close()


def _output(reader: Reader, program: str, words: list[str], began: float, path: str) -> tuple[bytes, dict[str, int]]:
    """Run a program; return its output, and the paths of its errors with the number of missing bytes. Logs errors."""
    with _started(words) as running:
        assert running.stdout is not None
        data = running.stdout.read()
        return data, _said(reader, program, running, began, path)


def _run(reader: Reader, program: str, words: list[str], began: float, path: str) -> dict[str, int]:
    return _output(reader, program, words, began, path)[1]


def _said(reader: Reader, program: str, running: subprocess.Popen[bytes], began: float, path: str) -> dict[str, int]:
    """Wait for the end of a program; return the paths of its errors, with missing bytes; the path "" stands for all."""
    assert running.stderr is not None
    told = running.stderr.read().decode("utf-8", "surrogateescape")
    status = running.wait()
    ended = time.monotonic()
    found: dict[str, int] = {}
    for line in told.splitlines():
        event = _error(reader, program, line, began, ended, path)
        if event is not None:
            found[event.path] = event.missing
            reader.log(event)
    if status and not found:
        wrong = f"{program} ended with {status} and said {told.strip()[-200:]!r}"
        reader.log(Event(program, path, began, ended, wrong=wrong))
        return {"": 0}
    return found


def _error(reader: Reader, program: str, line: str, began: float, ended: float, path: str) -> Event | None:
    """Parse a line of standard error; None if it only follows from other errors."""
    named = re.search(rf"{re.escape(str(reader.top))}(?:/([^'’:]*))?", line) or re.match(r"tar: ([^:]*): ", line)
    where = (named[1] or "").rstrip("/") if named else path
    if CHANGED.search(line):
        return Event(program, where, began, ended, error="CHANGED")
    if shrank := SHRANK.search(line):
        return Event(program, where, began, ended, error="SHRANK", missing=int(shrank[1]))
    if REMOVED in line:
        return Event(program, where, began, ended, error="ENOENT")
    for text, name in ERRNOS.items():
        if f": {text}" in line:
            return Event(program, where, began, ended, error=name)
    if any(words in line for words in ("Exiting with failure status", "Error is not recoverable", "Skipping to next")):
        return None
    return Event(program, where, began, ended, wrong=f"{program} said {line!r}")


def _met(errors: Iterable[str], path: str) -> bool:
    """Return true if there was an error at the path or above it."""
    return any(not each or path == each or path.startswith(f"{each}/") for each in errors)


def _end(reader: Reader, program: str, running: subprocess.Popen[bytes], path: str, began: float) -> None:
    try:
        running.wait(DYING)
    except subprocess.TimeoutExpired:
        wrong = f"a program that reads {path} was killed, and has not ended after {DYING:.0f} s"
        reader.log(Event(program, path, began, time.monotonic(), wrong=wrong))


def _reap(child: int) -> None:
    deadline = time.monotonic() + DYING
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.05)


def as_dict(event: Event) -> dict[str, Any]:
    return {key: value for key, value in asdict(event).items() if value not in ("", None) or key == "path"}


def written(log: IO[str]) -> Log:
    """Return a log that writes each event to a file as a line of JSON."""

    def write(event: Event) -> None:
        log.write(json.dumps(as_dict(event)) + "\n")

    return write
