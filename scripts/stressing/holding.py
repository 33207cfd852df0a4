"""Check the resources of a mount, while it runs and afterwards: counters, descriptors, memory, cache directory."""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.stressing.archive import File
from scripts.stressing.contents import Wrong, check, version_in
from scripts.stressing.verdict import Finding
from scripts.stressing.watch import Sample

MB = 10**6
# Partly fetched files that the cache retains for the next open (content/open_files.py: MAX_IDLE_FILES).
IDLE_FILES = 4
# Idle connections that are reused (http/clients.py: MAX_CONNECTIONS).
CONNECTIONS = 10
# Bytes in flight that are not counted yet (content/write_behind.py: MAX_UNWRITTEN_BYTES; content/blob.py:
# SMALL_FILE_BYTES, for each download).
UNCOUNTED = 8 * 2**20 + 8 * 8 * 2**20
# Limits of memory. A daemon that has read nothing has 41 MB (measured). Add 10 connections with a socket read of 512
# KiB and its copies, 3 members of a tar of 2 MB, 12 MB that wait to be written or were, the listings of 6,500 files and
# their nodes (5 MB), a megabyte for each of 32 READs, and as much again for fragmentation, one arena for each thread:
# 190. 140 was the maximum in four minutes. A download process has 22 MB (measured).
DAEMON_MOST, PROCESS_MOST = 200 * MB, 30 * MB
# The second half of a run may exceed the first by one more peak of load, but not by memory that accumulates.
GROWTH, GROWTH_MB = 1.10, 15
# The minimal number of samples for this check, five minutes: in a shorter run memory only grows by resources that are
# needed for the first time, such as another download process.
ENOUGH = 60

# Counters that are zero when no file is read.
ZERO = ("files", "directories", "readers", "fills", "unwritten", "tars", "downloads", "heads")


def is_calm(state: dict[str, int]) -> bool:
    return all(state[name] == 0 for name in ZERO) and state["partials"] <= IDLE_FILES


def counters_zero(state: dict[str, int], waiting: int) -> Finding:
    left = {name: state[name] for name in ZERO if state[name]}
    if waiting:
        left["waiting in the kernel"] = waiting
    if state["partials"] != state["idle"] or state["idle"] > IDLE_FILES:
        left |= {"partials": state["partials"], "of them idle": state["idle"]}
    told = ", ".join(f"{name} {count}" for name, count in left.items())
    said = told or f"all are zero; {state['idle']} partly fetched files are retained ({IDLE_FILES} may be)"
    return Finding("all counters return to zero", not left, said)


def descriptors_back(before: Sequence[str], after: Sequence[str], children: int) -> Finding:
    """Compare open descriptors; allowed are idle connections, partly fetched files, and two for each idle process."""
    kinds_before, kinds_after = (Counter(_kind(each) for each in found) for found in (before, after))
    allowed = Counter({"socket": CONNECTIONS + children, "anon_inode": children, "partial": IDLE_FILES})
    more = {kind: count - kinds_before[kind] for kind, count in kinds_after.items() if count > kinds_before[kind]}
    leaked = {kind: count for kind, count in more.items() if count > allowed[kind]}
    said = f"{len(before)} before, {len(after)} after"
    if more:
        said += f"; more are {', '.join(f'{kind} {count}' for kind, count in more.items())}"
    return Finding("no leaked descriptor", not leaked, said)


def _kind(opened: str) -> str:
    if opened.startswith("socket:"):
        return "socket"
    if "/partial/" in opened:
        return "partial"
    return "blob" if "/blobs/" in opened else opened.partition(":")[0]


def tasks_back(before: int, after: int) -> Finding:
    """Compare the number of tasks. pyfuse3 retains some that have served requests, to wait for the next ones."""
    return Finding("no leaked task", after <= before + 5, f"{before} before, {after} after")


def threads_bounded(before: int, after: int) -> Finding:
    """Compare the number of threads. Trio retains idle ones for 10 s, and at most 40."""
    return Finding("no leaked thread", after <= before + 2, f"{before} before, {after} after")


def memory_bounded(samples: Sequence[Sample]) -> Finding:
    half = len(samples) // 2
    first, second = (max((s.resident for s in part), default=0) for part in (samples[:half], samples[half:]))
    daemon = max((s.daemon for s in samples), default=0)
    absolute = all(s.resident - s.daemon <= s.children * PROCESS_MOST for s in samples) and daemon <= DAEMON_MOST
    grown = len(samples) >= ENOUGH and second > GROWTH * first + GROWTH_MB * MB
    said = (
        f"at most {first / MB:.0f} MB in the first half, {second / MB:.0f} in the second, with"
        f" {max((s.children for s in samples), default=0)} processes; the daemon alone {daemon / MB:.0f}"
        f" (bound: {DAEMON_MOST // MB}, and {PROCESS_MOST // MB} for each process)"
    )
    return Finding("memory stays below a bound, and does not grow", bool(samples) and absolute and not grown, said)


def directory_bounded(samples: Sequence[Sample]) -> Finding:
    """Check the size of the cache directory against its limit plus open files.

    A sample takes some time, so the largest number of open bytes among its neighbours counts.
    """
    worst, said = -1, "never looked at"
    holds = bool(samples)
    for place, sample in enumerate(samples):
        around = samples[max(0, place - 1) : place + 2]
        limit = sample.state["limit"]
        room = limit + max(each.state["open_bytes"] for each in around) + UNCOUNTED
        holds = holds and sample.on_disk <= room
        if sample.on_disk > worst:
            worst = sample.on_disk
            said = f"at most {worst / MB:.0f} MB, with a limit of {limit / MB:.0f} and {(room - limit) / MB:.0f} open"
    return Finding("the cache directory exceeds its limit only by open files", holds, said)


def cached_right(directory: Path, files: dict[str, File], resources: dict[str, str]) -> Finding:
    """Check the cache after the unmount: rows and files correspond, the total is their sum, and every byte is right.

    Args:
        directory: The cache directory.
        files: The working set, by path.
        resources: The directories of resources, by their numbers.
    """
    wrong: list[str] = []
    (site,) = (each for each in directory.iterdir() if (each / "index.sqlite").exists())
    with sqlite3.connect(site / "index.sqlite") as index:
        rows = index.execute("SELECT ident, key, size FROM blobs").fetchall()
        (total,) = index.execute("SELECT bytes FROM total").fetchone()
        reserved = index.execute("SELECT count(*) FROM partials").fetchone()[0]
    names = {path.name for path in site.glob("blobs/*/*")}
    if names != {ident.hex() for ident, _, _ in rows}:
        wrong.append(f"{len(rows)} rows, {len(names)} files, not of each other")
    if total != sum(size for _, _, size in rows) or reserved:
        wrong.append(f"the total is {total}, not {sum(size for _, _, size in rows)}; {reserved} are reserved")
    for ident, key, size in rows:
        number, _, inner = key.partition("/")
        path = site / "blobs" / ident.hex()[:2] / ident.hex()
        if number in resources and path.exists():
            wrong += _blob(path.read_bytes(), files[f"{resources[number]}/{inner}"], size)
    left = [path.name for path in site.glob("partial/*")]
    if left:
        wrong.append(f"{len(left)} downloads are left in partial/")
    said = "; ".join(wrong[:5]) or f"{len(rows)} files, {total / MB:.0f} MB, each byte compared; nothing partial"
    return Finding("cached files are correct, and there are no others", not wrong, said)


def _blob(data: bytes, file: File, size: int) -> list[str]:
    version = version_in(data, 0)
    if len(data) != size or (version is None and data) or (version is not None and size != file.size(version)):
        return [f"{file.path} is cached with {len(data)} bytes, of version {version}; its row says {size}"]
    try:
        if version is not None:
            check(file.path, data, 0, version)
    except Wrong as error:
        return [f"cached: {error}"]
    return []


def temporary_gone(*directories: Path) -> Finding:
    left = [path.name for directory in directories for path in directory.rglob("*") if not path.is_dir()]
    return Finding("no temporary file", not left, f"{len(left)} left: {left[:3]}" if left else "none is left")


def log_clean(log: Path) -> Finding:
    """Check that the daemon's log has no traceback and no error: faults of servers are warnings at most."""
    lines = log.read_text(errors="replace").splitlines()
    bad = [line for line in lines if " ERROR " in line or " CRITICAL " in line or line.startswith("Traceback")]
    return Finding("no unexpected error in the log", not bad, f"{len(bad)}: {bad[0][:200]}" if bad else "none")
