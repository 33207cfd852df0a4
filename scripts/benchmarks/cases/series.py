"""Cases about series: small files, read in sequence, from a server that is 50 ms and 1 Gbit/s away."""

import hashlib
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.benchmarks import archives, peers, rig
from scripts.benchmarks.cases.bench import Bench, wire
from scripts.benchmarks.report import Row
from scripts.benchmarks.requests import Request
from scripts.benchmarks.rig import SCRIPTS, MeasurementFailed
from scripts.benchmarks.site import PASSWORD, USER, Server

DELAY = 0.05
WRONG = "wrong bytes"
# rclone and Python clients wait one delay for each file, which adds up to minutes.
COMMAND_TIMEOUT_SECONDS = 900.0


def series(bench: Bench) -> list[Row]:
    """Copy a session with `cp -r`, cold."""
    scans, files = (3, 20) if bench.quick else (20, 100)
    data = archives.series(bench.directory, scans, files, 50_000)
    archives.in_memory(data)
    try:
        options = ["--schemas", str(peers.schemas(bench.directory))]
    except MeasurementFailed:
        options = []
    rows = []
    for tls in bench.wires:
        with bench.server(data, delay=DELAY, paced=True, replica=True, options=options, tls=tls) as server:
            copied = _copied(bench, server, data)
            others = [_downloaded(bench, server, data, one, copied[0].ours) for one in peers.DOWNLOADERS]
            rows += [*copied, _rclone(bench, server, data, copied[0].ours), *others]
    return rows


def _copied(bench: Bench, server: Server, data: Path) -> list[Row]:
    ours, theirs, counts, login, right = [], [], [], [], True
    truth = archives.tree_md5(archives.session(data) / "scans")
    out = bench.directory / "copy"
    tar = tar_command(server, server.accession("SERIES", "SESSION"), "ALL")
    for turn in range(bench.times + 1):  # the first fills the replica, and is not counted
        rig.discard(out)
        out.mkdir()
        took = rig.shell(f"{tar} | tar x -C {out}")
        theirs += [took] if turn else []
        right &= archives.contents(out) == sorted(truth.values())
        with bench.mount(server) as mount:
            rig.drop_pages()
            rig.discard(out)
            before = len(server.requests())
            took = rig.shell(f"cp -r {mount.session('SERIES') / 'scans'} {out}")
            ours += [took] if turn else []
        asked = server.requests()[before:]
        counts.append(_data(asked))
        login.append(sum(request.kept == "MISS" for request in asked))
        right &= archives.tree_md5(out) == truth
    rig.discard(out)
    count, scans = len(truth), len({path.partition("/")[0] for path in truth})
    title = f"`cp -r` of {scans} series, {count} files of 50 KB, cold, 50 ms a request, 1 Gbit/s{wire(server)}"
    row = Row("series", title, ours, "`curl | tar x` of one tar", theirs, "at most 2, and 10 round trips")
    row.require(row.median <= 2 * statistics.median(theirs) + 10 * DELAY).require(right, WRONG)
    row.notes.append(f"{login[-1]} of the last run's answers came from the demo and not from the replica")
    most = [float(sum(count.values())) for count in counts[1:]]
    requests = Row("series", f"its data requests, {scans} series", most, "", [], "at most 30, and 2 a series", "")
    requests.require(max(most) <= 30).require(max(max(c.values(), default=0) for c in counts[1:]) <= 2)
    return [row, requests]


def tar_command(server: Server, session: str, scan: str) -> str:
    """Return a shell command that writes the tar of a scan, or of all scans."""
    url = f"{server.url}/data/experiments/{session}/scans/{scan}/files?format=tar"
    return f"{server.curl} -u {USER}:{PASSWORD} '{url}'"


def _data(requests: Sequence[Request]) -> Counter[str]:
    """Count the data requests by the scan, resource or list of scans that they address."""
    found = Counter[str]()
    for request in requests:
        if request.data:
            found[request.path.partition("/files")[0]] += 1
    return found


def _rclone(bench: Bench, server: Server, data: Path, ours: Sequence[float]) -> Row:
    """Time rclone once: a run takes minutes, and repeating it adds nothing."""
    truth = archives.tree_md5(archives.session(data) / "scans")
    out = bench.directory / "copy"
    name = "rclone, tree read before"
    row = Row("series", f"the same{wire(server)}", ours, name, [], "at least 10 times as fast: at most 0.1")
    try:
        with peers.rclone(bench.directory, name, server) as mountpoint:
            source = mountpoint / "SERIES" / archives.SESSION / "scans"
            row.theirs = [rig.shell(f"cp -r {source} {out}", timeout=COMMAND_TIMEOUT_SECONDS)]
        if wrong := archives.difference(archives.tree_md5(out), truth):
            row.notes.append(f"{name}: **{wrong}**")
    except MeasurementFailed as why:
        row.notes.append(str(why))
    rig.discard(out)
    return row.at_most(0.1) if row.theirs else row


def _downloaded(bench: Bench, server: Server, data: Path, one: peers.Transferrer, ours: Sequence[float]) -> Row:
    """Time a downloader on the same session. Except in a quick run, a first download fills the replica."""
    row = Row("series", f"the same{wire(server)}", ours, one.name, [], "")
    out = bench.directory / "copy"
    try:
        for _ in range(1 if bench.quick else 2):
            command, env = one.command(bench.directory, server)
            rig.discard(out)
            out.mkdir()
            row.theirs = [rig.shell(f"{command} {out}", env, timeout=COMMAND_TIMEOUT_SECONDS)]
        if archives.contents(out, "*.dcm") != archives.contents(archives.session(data)):  # pyxnat leaves its zip there
            row.notes.append(f"{one.name}: {WRONG}, or other files")
    except MeasurementFailed as why:
        row.notes.append(f"{one.name}: {why}")
    rig.discard(out)
    return row


def dcm2niix(bench: Bench) -> list[Row]:
    """Convert real images, series by series, with a program that opens each file four times."""
    from tests.support.real_data import PROJECT, RealDataError, sample_sessions

    try:
        data = sample_sessions()
    except RealDataError as why:
        raise MeasurementFailed(str(why)) from None
    labels, most = (["Case001"], 4) if bench.quick else (["Case001", "ANONYMIZ"], None)
    archives.in_memory(data)
    sessions = {label: _scans(data / PROJECT / label / label)[:most] for label in labels}
    chosen = [(PROJECT, label, scan) for label, scans in sessions.items() for scan in scans]
    return [_series_by_series(bench, data, chosen, tls) for tls in bench.wires]


def _series_by_series(bench: Bench, data: Path, scans: Sequence[tuple[str, str, str]], tls: bool) -> Row:
    """Convert scans, given by project, label of the session and ID, out of a mount and out of tars."""
    ours, theirs, right = [], [], True
    with bench.server(data, delay=DELAY, paced=True, replica=True, tls=tls) as server:
        tars = [tar_command(server, server.accession(project, label), scan) for project, label, scan in scans]
        for turn in range(bench.times + 1):  # the first fills the replica
            rig.drop_pages()
            archives.in_memory(data)
            there = [_converted(bench, str(bench.directory / "series"), tar) for tar in tars]
            with bench.mount(server) as mount:
                top = mount.path / "projects"
                here = [_converted(bench, f"{top}/{p}/{label}/{label}/scans/{scan}/DICOM") for p, label, scan in scans]
            right &= [images for _, images in here] == [images for _, images in there]
            ours += [sum(seconds for seconds, _ in here)] if turn else []
            theirs += [sum(seconds for seconds, _ in there)] if turn else []
    labels = " and ".join(dict.fromkeys(label for _, label, _ in scans))
    title = f"dcm2niix, series by series, {labels}, 50 ms a request, 1 Gbit/s{wire(server)}"
    row = Row("dcm2niix", title, ours, "`curl | tar x` of each, and it on the local files", theirs, "at most 1.3")
    return row.at_most(1.3).require(right, "other images")


def _scans(session: Path) -> list[str]:
    return sorted(path.name for path in (session / "scans").iterdir() if path.is_dir())


def _converted(bench: Bench, source: str, tar: str = "") -> tuple[float, list[str]]:
    """Convert a series; return the duration in seconds, and the MD5 of each image.

    `tar` is a command whose tar is unpacked into `source` first.
    """
    out = bench.directory / "images"
    rig.shell(f"rm -rf {out} && mkdir -p {out}")
    fetch = f"rm -rf {source} && mkdir {source} && {tar} | tar x -C {source} && " if tar else ""
    # Nine levels, since paths in a tar have seven. dcm2niix exits with 1 or 2 if a series holds no image that it can
    # convert, also for a local copy.
    took = rig.shell(f"{fetch}{{ {SCRIPTS}/dcm2niix -d 9 -f %s_%p -o {out} {source} || [ $? -lt 3 ]; }}")
    return took, sorted(archives.tree_md5(out, "*.nii").values())


ORDERS = ("sorted", "backward", "random", "every other one", "by eight threads")


def orders(bench: Bench) -> list[Row]:
    """Read each file of a session once, in several orders, after its listings; catalogues are in hash order."""
    scans, files = (5, 40) if bench.quick else (20, 100)
    data = archives.series(bench.directory, scans, files, 50_000)
    archives.in_memory(data)
    rows = []
    for tls in bench.wires:
        with bench.server(data, delay=DELAY, paced=True, replica=True, tls=tls) as server:
            tar = tar_command(server, server.accession("SERIES", "SESSION"), "ALL")
            for way in ("`cp -r`", *ORDERS):
                rows += _in_order(bench, server, data, tar, way)
    with bench.server(data, delay=DELAY, replica=True, tls=True) as server:
        tar = tar_command(server, server.accession("SERIES", "SESSION"), "ALL")
        rows += _in_order(bench, server, data, tar, "`cp -r`", limit=3.0, trips=0, line="no limit of the line")
    many = archives.small(bench.directory, 400 if bench.quick else 4000, 5000)
    archives.in_memory(many)
    for tls in bench.wires:
        with bench.server(many, delay=DELAY, paced=True, replica=True, tls=tls) as server:
            tar = tar_command(server, server.accession("SMALL", "SESSION"), "ALL")
            rows += _in_order(bench, server, many, tar, "sorted", limit=2.0, trips=0)
    count = len(list(archives.session(many).rglob("*.dcm")))
    return [*rows, _limit_of_pyfuse3(bench, count, 5000, rows[-2].ours)]


def _limit_of_pyfuse3(bench: Bench, count: int, size: int, ours: Sequence[float]) -> Row:
    """Read as many files from a file system that has them in memory: no mount by pyfuse3 takes less."""
    bare = []
    with peers.bare(bench.directory, "--entries", count, "--size", size) as mountpoint:
        for _ in range(bench.times):
            rig.shell(f"ls -l {mountpoint} > /dev/null")
            rig.drop_pages()
            bare.append(_read(mountpoint, "sorted")[0])
    return Row("orders", "the same", ours, "a bare pyfuse3 that has the files in memory", bare, "")


def _in_order(
    bench: Bench,
    server: Server,
    data: Path,
    tar: str,
    way: str,
    *,
    limit: float = 0.0,
    trips: int = 4,
    line: str = "1 Gbit/s",
) -> list[Row]:
    """Read a session from a new mount, which has its listings, and compare with one tar of all of it."""
    truth = archives.tree_md5(archives.session(data) / "scans")
    project, out = next(data.iterdir()).name, bench.directory / "copy"
    limit = limit or (1.8 if way == "`cp -r`" else 1.6)
    ours, theirs, counts, right = [], [], [], True
    for turn in range(bench.times + 1):  # the first fills the replica, and is not counted
        rig.discard(out)
        out.mkdir()
        took = rig.shell(f"{tar} | tar x -C {out}")
        theirs += [took] if turn else []
        with bench.mount(server) as mount:
            source = mount.session(project) / "scans"
            rig.shell(f"ls -lR {source} > /dev/null")
            rig.drop_pages()
            rig.discard(out)
            before = len(server.requests())
            if way == "`cp -r`":
                took = rig.shell(f"cp -r {source} {out}")
                right &= archives.tree_md5(out) == truth
            else:
                took, found = _read(source, way)
                right &= found == {path: truth[path] for path in found} and bool(found)
            ours += [took] if turn else []
            counts += [float(sum(_data(server.requests()[before:]).values()))] if turn else []
    rig.discard(out)
    scans = len({path.partition("/")[0] for path in truth})
    title = f"{way}: {len(truth)} files in {scans} series, listed before, 50 ms a request, {line}{wire(server)}"
    goal = f"at most {limit}" + (f", and {trips} round trips" if trips else "")
    row = Row("orders", title, ours, "`curl | tar x` of one tar", theirs, goal)
    row.require(row.median <= limit * statistics.median(theirs) + trips * DELAY).require(right, WRONG)
    requests = Row("orders", "its data requests", counts, "", [], "at most 2 a series, and 2", "")
    return [row, requests.require(max(counts) <= 2 * scans + 2)]


def _read(source: Path, way: str) -> tuple[float, dict[str, str]]:
    """Read the files of a folder in some order; return the duration in seconds, and the MD5 of each by its path."""
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    if way == "backward":
        paths.reverse()
    elif way == "random":
        random.Random(1).shuffle(paths)
    elif way == "every other one":
        paths = paths[::2]
    began = time.perf_counter()
    with ThreadPoolExecutor(8 if way == "by eight threads" else 1) as pool:
        contents = list(pool.map(Path.read_bytes, paths))
    took = time.perf_counter() - began
    digests = [hashlib.md5(content).hexdigest() for content in contents]
    return took, {path.relative_to(source).as_posix(): digest for path, digest in zip(paths, digests, strict=True)}


def one(bench: Bench) -> list[Row]:
    """Read one or two files from the middle of a large resource."""
    data = bench.many(4000, 4000)
    rows = []
    with bench.server(data, delay=DELAY, paced=True, tls=True) as server:
        for files in (1, 2):
            ours, counts, archived, right = [], [], 0, True
            for turn in range(bench.times):
                numbers = random.Random(turn).sample(range(4000), files)
                with bench.mount(server) as mount:
                    before = len(server.requests())
                    folder, names = Path("scans", "1", "DICOM"), [f"1-{number:05}.dcm" for number in numbers]
                    paths = [mount.session("MANY") / folder / name for name in names]
                    ours.append(rig.shell(f"cat {' '.join(map(str, paths))} > /dev/null"))
                    asked = [request for request in server.requests()[before:] if request.data]
                    right &= all(rig.same(path, archives.session(data) / folder / path.name) for path in paths)
                counts.append(float(len(asked)))
                archived += sum(request.archive for request in asked)
            title = f"{files} random file{'s' * (files > 1)} of a resource of 4,000: data requests"
            row = Row("one", title, counts, "", [], "at most 2, no tar", "")
            row.require(max(counts) <= 2).require(archived == 0, "a tar was asked for").require(right, WRONG)
            row.notes.append(f"{statistics.median(ours):.2f} s, listings and all, 50 ms a request, from a new mount")
            rows.append(row)
    return rows
