"""Cases about xnatctl: a session downloaded and uploaded, beside what curl needs for one archive of it."""

import json
import os
import shutil
import statistics
import zipfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks import archives, peers, rig
from scripts.benchmarks.cases.bench import Bench, wire
from scripts.benchmarks.cases.series import COMMAND_TIMEOUT_SECONDS, DELAY, WRONG, tar_command
from scripts.benchmarks.report import Row
from scripts.benchmarks.rig import SCRIPTS, MeasurementFailed
from scripts.benchmarks.site import PASSWORD, USER, Server


def download(bench: Bench) -> list[Row]:
    """Download a session of small files with xnatctl, and with its peers."""
    scans, files = (4, 100) if bench.quick else (20, 100)
    data = archives.series(bench.directory, scans, files, 50_000)
    archives.in_memory(data)
    try:
        options = ["--schemas", str(peers.schemas(bench.directory))]
    except MeasurementFailed:
        options = []
    return [row for tls in bench.wires for row in _downloads(bench, data, tls, options)]


def _downloads(bench: Bench, data: Path, tls: bool, options: Sequence[str]) -> list[Row]:
    out, count = bench.directory / "copy", len(archives.contents(data))
    with bench.server(data, delay=DELAY, paced=True, replica=True, options=options, tls=tls) as server:
        ours, theirs, right = [], [], True
        accession = server.accession("SERIES", archives.SESSION.name)
        tar = tar_command(server, accession, "ALL")
        home = bench.directory / "downloader" / "ours"
        shutil.rmtree(home, ignore_errors=True)
        env = rig.login(server, home)
        rig.shell(f"{SCRIPTS}/xnatctl auth login", env)
        for turn in range(bench.times + 1):  # the first fills the replica, and is not counted
            theirs += [_into(out, f"{tar} | tar x -C {out}")][: bool(turn)]
            shutil.rmtree(home / ".cache", ignore_errors=True)
            took = _into(out, f"{SCRIPTS}/xnatctl session download -E {accession} --out {out} -q", env)
            ours += [took][: bool(turn)]
            right &= archives.contents(out, "*.dcm") == archives.contents(archives.session(data))
        title = f"`xnatctl session download`, {count} files of 50 KB, 50 ms a request, 1 Gbit/s{wire(server)}"
        first = Row("download", title, ours, "`curl | tar x` of one tar", theirs, "at most 1.3").at_most(1.3)
        rows = [first.require(right, WRONG)]
        rows += [_peer(bench, server, data, one, ours) for one in peers.DOWNLOADERS]
    rig.discard(out)
    return rows


def _into(out: Path, command: str, env: dict[str, str] | None = None) -> float:
    """Time a command that fills an empty directory."""
    rig.discard(out)
    out.mkdir()
    os.sync()
    return rig.shell(command, env, timeout=COMMAND_TIMEOUT_SECONDS)


def _peer(bench: Bench, server: Server, data: Path, one: peers.Transferrer, ours: list[float]) -> Row:
    row = Row("download", f"the same{wire(server)}", ours, one.name, [], "less than 1")
    out = bench.directory / "copy"
    try:
        for turn in range(bench.times + 1):  # the first fills the replica
            command, env = one.command(bench.directory, server)
            row.theirs = [*row.theirs, _into(out, f"{command} {out}", env)][-max(turn, 1) :]
        if archives.contents(out, "*.dcm") != archives.contents(archives.session(data)):  # pyxnat leaves its zip there
            row.notes.append(f"{one.name}: {WRONG}, or other files")
    except MeasurementFailed as why:
        row.notes.append(f"{one.name}: {why}")
        return row
    return row.require(row.median < statistics.median(row.theirs))


def upload(bench: Bench) -> list[Row]:
    """Upload a session with xnatctl into the prearchive, beside curl and a zip that is there already."""
    small = (200, 50_000) if bench.quick else (2000, 50_000)
    large = (2, 32_000_000) if bench.quick else (4, 500_000_000)
    rows = []
    for count, size in (small, large):
        folder = archives.images(bench.directory, count, size)
        packed = folder.with_suffix(".zip")
        if not packed.exists():
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                for path in sorted(folder.iterdir()):
                    archive.write(path, path.name)
        what = f"`xnatctl session upload`, {count} files of {size / 1e6:g} MB, 50 ms a request, 1 Gbit/s"
        for tls in bench.wires:
            rows += _uploaded(bench, folder, packed, what, tls)
    return rows


def _uploaded(bench: Bench, folder: Path, packed: Path, what: str, tls: bool) -> list[Row]:
    """Time uploads beside a zip sent by curl, which stays open for more files, and beside one that is committed."""
    ours, theirs, committed, peer = [], [], [], []
    right, notes = True, []
    for turn in range(bench.times):
        with bench.server(bench.many(100, 100), delay=DELAY, paced=True, tls=tls) as server:
            env = rig.login(server, bench.directory / "uploader")
            rig.shell(f"{SCRIPTS}/xnatctl auth login", env)
            query = "import-handler=DICOM-zip&inbody=true&project=MANY&subject=S&session=THEIRS"
            send = f"-X POST -H 'Content-Type: application/zip' -H Expect: -T {packed}"
            url = f"{server.url}/data/services/import?{query}&dest=/prearchive/projects/MANY"
            curl = f"{server.curl} -u {USER}:{PASSWORD}"
            os.sync()  # what was written before must not be written to disk during the timed run
            took, place = rig.output(f"{curl} {send} '{url}'", timeout=COMMAND_TIMEOUT_SECONDS)
            theirs.append(took)
            committed.append(took + rig.shell(f"{curl} -X POST '{server.url}{place.strip()}?action=commit'"))
            command = f"{SCRIPTS}/xnatctl session upload {folder} -P MANY -S S -E OURS{turn} --prearchive -o json"
            os.sync()
            took, said = rig.output(command, env, timeout=COMMAND_TIMEOUT_SECONDS)
            ours.append(took)
            right &= f'"sent": {len(list(folder.iterdir()))}' in said
            try:
                words, env = peers.UPLOADER.command(bench.directory, server)
                os.sync()
                took = rig.shell(words.format(folder, f"PEERS{turn}"), env, timeout=COMMAND_TIMEOUT_SECONDS)
                told = rig.output(f"{curl} '{server.url}/data/prearchive/projects/MANY?format=json'")[1]
                rows = json.loads(told)["ResultSet"]["Result"]
                (place,) = (row["url"] for row in rows if row["name"] == f"PEERS{turn}")
                peer.append(took + rig.shell(f"{curl} -X POST '{server.url}/data{place}?action=commit'"))
            except MeasurementFailed as why:
                notes = [f"{peers.UPLOADER.name}: {why}"]
    what += wire(server)
    limits = [
        Row("upload", what, ours, "`curl` of one zip that is there", theirs, "at most 1.3"),
        Row("upload", "the same", ours, "`curl`, and the commit that ends the upload", committed, "at most 1.3"),
    ]
    name = f"{peers.UPLOADER.name}, and the commit that it leaves out"
    beside = Row("upload", "the same", ours, name, peer, "less than 1", notes=notes)
    if peer:
        beside.require(beside.ratio < 1)
    return [*(row.at_most(1.3).require(right) for row in limits), beside]
