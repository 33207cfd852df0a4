"""Cases about big files, read from end to end: cold, from xnatfs's cache, and from the kernel's page cache.

Every program has looked up the file before, as curl has with its URL: only the transfer of its bytes is timed.
"""

import contextlib
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks import archives, peers, rig
from scripts.benchmarks.cases.bench import Bench, big_file
from scripts.benchmarks.report import Row
from scripts.benchmarks.rig import MeasurementFailed
from scripts.benchmarks.site import Server

WRONG = "wrong bytes"
# rclone and httpdirfs take seconds if they work; a run that hangs is abandoned.
READ_TIMEOUT_SECONDS = 120.0


@dataclass
class Runs:
    """The durations on one server, in seconds by program, and the programs that read wrong bytes."""

    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    # Of each xnatfs run: processor seconds of the daemon, of its processes and of all others; and those available.
    work: list[tuple[float, float, float, float]] = field(default_factory=list)

    def fastest_right(self) -> str:
        """Return the fastest rclone variant that read the right bytes; "" if there is none."""
        names = [name for name in self.took if name in peers.RCLONE and name not in self.wrong]
        return min(names, key=lambda name: min(self.took[name]), default="")

    def told(self) -> list[str]:
        """Return the notes, with the durations of the other programs."""
        others = [name for name, took in self.took.items() if took and name not in ("ours", "curl")]
        found = [f"{name} {min(self.took[name]):.2f} s{self._verdict(name)}" for name in others]
        return [self._worked(), *self.notes, *(["; ".join(found)] if found else [])]

    def _worked(self) -> str:
        """Describe how the fastest run used the processors."""
        daemon, others, rest, there = min(self.work, key=lambda work: work[-1])
        return (
            f"in our quickest run the processors worked {daemon + others + rest:.2f} s of the {there:.2f} s that they"
            f" had: the daemon {daemon:.2f} s, the process that receives {others:.2f} s, the server, `cat` and the"
            f" kernel beside {rest:.2f} s"
        )

    def _verdict(self, name: str) -> str:
        return f", **{WRONG}**" if name in self.wrong else ""


def big(bench: Bench) -> list[Row]:
    """Read one big file, cold: with and without digests, over HTTP and TLS, without and with ranges."""
    rows = []
    for digests in (True, False):
        for tls in (True, False):
            rows += _big(bench, digests, tls)
    return rows


def _big(bench: Bench, digests: bool, tls: bool) -> list[Row]:
    data = bench.one_big()
    runs = {ranges: Runs() for ranges in (False, True)}
    with (
        bench.server(data, name="site", digests=digests, tls=tls) as whole,
        bench.server(data, name="site-with-ranges", digests=digests, tls=tls, ranges=True) as ranged,
    ):
        for _ in range(bench.times):
            for ranges, server in ((False, whole), (True, ranged)):
                _by_hand(bench, server, data, runs[ranges], digests)
                _ours(bench, server, data, runs[ranges])
                if not digests and not tls:
                    _peers(bench, server, data, runs[ranges], ranges)
    return [row for ranges in (False, True) for row in _rows(bench, digests, tls, ranges, runs)]


def _cold(data: Path) -> None:
    """Empty the page cache, except for the file that the server will send."""
    os.sync()  # dirty pages must not be written to disk during the timed run
    rig.drop_pages()
    archives.in_memory(big_file(archives.session(data)))


def _by_hand(bench: Bench, server: Server, data: Path, runs: Runs, digests: bool) -> None:
    url = server.plain("BIG/SUBJECT/SESSION/scans/1/RAW/big-1.bin")
    out = bench.directory / "by-hand"
    _cold(data)
    if digests:
        runs.took["curl"].append(rig.shell(f"{server.curl} {url} | tee {out} | md5sum"))
        if not rig.same(out, big_file(archives.session(data))):
            runs.wrong.add("curl")
    elif server.authority:  # the same work over TLS: it stores the file
        runs.took["curl"].append(rig.shell(f"{server.curl} -o {out} {url}"))
    else:
        runs.took["curl"].append(rig.shell(f"{server.curl} -o /dev/null {url}"))
    out.unlink(missing_ok=True)


def _ours(bench: Bench, server: Server, data: Path, runs: Runs) -> None:
    _cold(data)
    with bench.mount(server) as mount:
        path = big_file(mount.session("BIG"))
        path.stat()
        before = (rig.busy(), *mount.processor())
        took = rig.shell(f"cat {path} > /dev/null")
        runs.took["ours"].append(took)
        every, daemon, others = (now - then for now, then in zip((rig.busy(), *mount.processor()), before, strict=True))
        runs.work.append((daemon, others, every - daemon - others, took * (os.cpu_count() or 1)))
        if not rig.same(path, big_file(archives.session(data))):  # the page cache has the bytes that the mount served
            runs.wrong.add("ours")


def _peers(bench: Bench, server: Server, data: Path, runs: Runs, ranges: bool) -> None:
    """Time each rclone variant that has not read wrong bytes yet and, with ranges, httpdirfs, once."""
    for name in peers.RCLONE_FOR_RANGES if ranges else peers.RCLONE_FOR_NO_RANGES:
        if name not in runs.wrong:
            try:
                _peer(name, peers.rclone(bench.directory, name, server), data, runs)
            except MeasurementFailed as why:
                runs.notes.append(f"{name}: {why}")
                runs.wrong.add(name)
    if ranges and "httpdirfs" not in runs.took and not bench.quick:
        try:
            _peer("httpdirfs", peers.httpdirfs(bench.directory, server), data, runs)
        except MeasurementFailed as why:
            runs.notes.append(f"httpdirfs: {why}")
            runs.took["httpdirfs"] = []  # it is tried once


def _peer(name: str, mounting: "peers.Mounting", data: Path, runs: Runs) -> None:
    _cold(data)
    with mounting as mountpoint:
        path = big_file(mountpoint / "BIG" / archives.SESSION)
        path.stat()
        took = rig.shell(f"cat {path} > /dev/null", timeout=READ_TIMEOUT_SECONDS)
        if not rig.same(path, big_file(archives.session(data))):
            runs.wrong.add(name)
        runs.took[name].append(took)


def _rows(bench: Bench, digests: bool, tls: bool, ranges: bool, runs: dict[bool, Runs]) -> list[Row]:
    mine, plain = runs[ranges], runs[False]
    words = ["digests" if digests else "no digests", "ranges" if ranges else "no ranges", *(["TLS"] if tls else [])]
    title = f"{bench.big >> 20} MiB cold, {', '.join(words)}"
    by_hand = "`curl \\| tee FILE \\| md5sum`" if digests else "`curl -o FILE`" if tls else "`curl -o /dev/null`"
    limit = (1.1 if digests else 1.5) if tls else (1.2 if digests else 2.5)
    ours, theirs = mine.took["ours"], mine.took["curl"]
    first = Row("big", title, ours, by_hand.replace("\\|", "|"), theirs, f"at most {limit}").at_most(limit)
    first.require("ours" not in mine.wrong, WRONG)
    first.notes += mine.told()
    rows = [first]
    if not digests and not tls:
        rclone = mine.fastest_right()
        # The goal applies to the server without ranges; the other is reported for comparison.
        goal = "" if ranges else "at most 0.67 (1.5 times as fast)"
        theirs = mine.took.get(rclone, [])
        beside = Row("big", f"{title}, beside rclone", ours, rclone or "no rclone was right", theirs, goal)
        rows.append(beside.at_most(1 / 1.5) if rclone and not ranges else beside)
    if ranges:  # two runs of one program differ by a tenth
        same = Row("big", title, ours, "ours without ranges", plain.took["ours"], "not slower: at most 1.1").at_most(
            1.1
        )
        rows.append(same)
    return rows


def warm(bench: Bench) -> list[Row]:
    """Read the same file again: from xnatfs's cache, then from the kernel's page cache.

    For the first, the whole page cache is dropped, and the files of the cache, rclone's too, and the local file are
    read again: this measures the path from a cache file in memory to the program, without the disk.
    """
    data = bench.one_big()
    truth = big_file(archives.session(data))
    cached, pages, memory, rclone, notes = [], [], [], [], []
    right = True
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(bench.server(data, ranges=True, tls=True))
        mount = stack.enter_context(bench.mount(server))
        path = big_file(mount.session("BIG"))
        rig.shell(f"cat {path} > /dev/null")
        try:
            mountpoint = stack.enter_context(peers.rclone(bench.directory, "rclone, cache", server))
            its = big_file(mountpoint / "BIG" / archives.SESSION)
            rig.shell(f"cat {its} > /dev/null", timeout=READ_TIMEOUT_SECONDS)
        except MeasurementFailed as why:
            its = None
            notes.append(f"rclone: {why}")
        asked = len(server.requests())
        for _ in range(bench.times):
            rig.drop_pages()
            for place in (truth, mount.cached(), peers.rclone_cache(bench.directory)):
                archives.in_memory(place)
            memory.append(rig.shell(f"cat {truth} > /dev/null"))
            cached.append(rig.shell(f"cat {path} > /dev/null"))
            pages.append(rig.shell(f"cat {path} > /dev/null"))
            right &= rig.same(path, truth)
            if its is not None:
                rclone.append(rig.shell(f"cat {its} > /dev/null", timeout=READ_TIMEOUT_SECONDS))
                notes += [] if rig.same(its, truth) else [f"rclone: {WRONG}"]
        again = sum(request.data for request in server.requests()[asked:])
    size = bench.big / 1e9
    first = Row("warm", "warm from our cache, pages dropped, TLS", [size / s for s in cached], "rclone's cache, warm",
                [size / s for s in rclone], "at least 1.2 GB/s, or 1.5", unit="GB/s", notes=notes)  # fmt: skip
    first.require(first.median >= 1.2 or first.ratio >= 1.5).require(right, WRONG)
    first.require(again == 0, f"{again} data requests")
    second = Row("warm", "again, from kernel pages", [size / s for s in pages], "a local file, from pages",
                 [size / s for s in memory], "at least 0.6", unit="GB/s").at_least(0.6)  # fmt: skip
    return [first, second.require(right, WRONG)]
