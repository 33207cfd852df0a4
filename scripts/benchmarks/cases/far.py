"""Cases about a far, lossy line.

The kernels of test machines may lack netem. So nginx delays each request, and sends each reply at the rate that a
connection with CUBIC reaches on such a line: the loss itself and the slow start of a connection are not simulated, and
a connection that is used again is as fast as a new one.
"""

from pathlib import Path

from scripts.benchmarks import archives, rig
from scripts.benchmarks.cases.bench import Bench, big_file, same_answers
from scripts.benchmarks.cases.series import COMMAND_TIMEOUT_SECONDS, WRONG, tar_command
from scripts.benchmarks.report import Row
from scripts.benchmarks.site import Server

# Bytes per second of one TCP connection at a round trip of 100 ms and 0.01 % loss (CUBIC; RFC 9438, table 2).
RATE, DELAY = 2_700_000, 0.1
LINE = "100 ms a request, 2.7 MB/s a reply, TLS"


def far(bench: Bench) -> list[Row]:
    """Read a big file, copy a session and list it over a far, lossy line: 100 ms, and 2.7 MB/s a connection."""
    size = (64 if bench.quick else 256) * 2**20
    scans, files = (3, 20) if bench.quick else (20, 100)
    big, series = archives.big(bench.directory, size), archives.series(bench.directory, scans, files, 50_000)
    archives.in_memory(big)
    archives.in_memory(series)
    with bench.server(big, series, tls=True, ranges=True, delay=DELAY, rate=RATE, replica=True) as server:
        rows = [_big(bench, server, big, size)]
        for turn in range(2):  # the first fills the replica
            listed, copied = _session(bench, server, series, scans * files)
            rows += [listed, copied] if turn else []
    return rows


def _big(bench: Bench, server: Server, data: Path, size: int) -> Row:
    out, path = bench.directory / "by-hand", "BIG/SUBJECT/SESSION/scans/1/RAW/big-1.bin"
    theirs = rig.shell(f"{server.curl} -o {out} {server.plain(path)}")
    out.unlink()
    with bench.mount(server) as mount:
        file = big_file(mount.session("BIG"))
        file.stat()
        ours = rig.shell(f"cat {file} > /dev/null")
        right = rig.same(file, big_file(archives.session(data)))
    row = Row("far", f"{size >> 20} MiB cold, ranges, {LINE}", [ours], "`curl -o FILE`", [theirs], "at most 0.67")
    return row.at_most(0.67).require(right, WRONG)


def _session(bench: Bench, server: Server, data: Path, count: int) -> tuple[Row, Row]:
    """Return the rows of a list of a session, and of a copy after it."""
    out, truth = bench.directory / "copy", archives.tree_md5(archives.session(data) / "scans")
    rig.discard(out)
    out.mkdir()
    tar = tar_command(server, server.accession("SERIES", archives.SESSION.name), "ALL")
    theirs = rig.shell(f"{tar} | tar x -C {out}", timeout=COMMAND_TIMEOUT_SECONDS)
    rig.discard(out)
    with bench.mount(server) as mount:
        before = len(server.requests())
        walk = rig.shell(f"ls -lR {mount.session('SERIES')} > /dev/null")
        asked = server.requests()[before:]
        ours = rig.shell(f"cp -r {mount.session('SERIES') / 'scans'} {out}", timeout=COMMAND_TIMEOUT_SECONDS)
        right = archives.tree_md5(out) == truth
        wanted = sum(request.data for request in server.requests()[before + len(asked) :])
    rig.discard(out)
    answers = rig.shell(same_answers(server, asked))
    listed = Row("far", f"`ls -lR` of a session of {count} files, cold, {LINE}", [walk], "`curl` of the same answers",
                 [answers], "at most 4 round trips more").require(walk <= answers + 4 * DELAY)  # fmt: skip
    listed.notes.append(f"{len(asked)} requests")
    copied = Row("far", f"`cp -r` of its {count} files of 50 KB, listed before, {LINE}", [ours],
                 "`curl | tar x` of one tar", [theirs], "at most 1.8, and 4 round trips")  # fmt: skip
    copied.require(ours <= 1.8 * theirs + 4 * DELAY).require(right, WRONG).notes.append(f"{wanted} data requests")
    return listed, copied
