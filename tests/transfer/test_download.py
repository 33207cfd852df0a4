"""Test xnatctl ... download: right bytes, once; interrupted and resumed; and one cache with the mount."""

import hashlib
import os
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.commanding import OWNER, PASSWORD, SESSION, Shell, shell
from tests.support.mounting import LIMIT, mounting
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Failed, Reply
from xnatfs.transfer.manifest import FOLDER

DOWNLOAD = ("session", "download", "-E", SESSION, "--out", "data")


def files(directory: Path) -> dict[str, bytes]:
    """Return all files but those in which a download records its state."""
    found = [path for path in directory.rglob("*") if path.is_file() and FOLDER not in path.parts]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def truth(shell: Shell) -> dict[str, bytes]:
    """Return what a download of the session is to leave below its directory."""
    return {
        f"scans/{scan.id}/resources/{resource.label}/files/{entry.path}": content(entry)
        for scan in shell.session().scans
        for resource in scan.resources
        for entry in resource.entries
    }


def content(entry: Entry) -> bytes:
    assert isinstance(entry.content, bytes)
    return entry.content


def fetched(shell: Shell) -> list[str]:
    """Return the files whose bytes were requested."""
    return [record.path for record in shell.requests("GET", "/files/.")]


def many(shell: Shell, count: int, size: int = 2000) -> None:
    """Add more files to the first scan."""
    resource = shell.session().scans[0].resources[0]
    for number in range(count):
        shell.app.archive.file(
            resource, f"more-{number:03}.dcm", hashlib.sha256(str(number).encode()).digest() * (size // 32)
        )


def test_a_session_comes_whole_and_a_second_time_nothing_does(fresh):
    fresh.ctl(*DOWNLOAD)
    assert files(fresh.home / "data" / SESSION) == truth(fresh)
    before = len(fetched(fresh))
    assert before == len(truth(fresh))
    done = fresh.ctl(*DOWNLOAD)
    assert "Up to date" in done.err
    assert len(fetched(fresh)) == before
    summary = fresh.ctl(*DOWNLOAD, "-o", "json").rows
    assert (summary["status"], summary["files"], summary["copied"]) == ("success", len(truth(fresh)), 0)


@pytest.mark.fuse
def test_what_the_mount_has_read_is_not_fetched_again(fresh, tmp_path):
    """Share a cache, as both are of one user, so of one home."""
    fresh.home = tmp_path / "both" / "home"
    fresh.home.mkdir(parents=True)
    scans = Path("projects", "MYPROJECT", "SUB001", "SUB001_MR_20240115", "scans")
    with mounting(fresh.url, tmp_path / "both", user=OWNER, password=PASSWORD) as mount:
        mount.walk(str(scans), read=True)
        before = len(fresh.requests("GET", "/files(/|$)"))
        fresh.ctl(*DOWNLOAD)
        fresh.ctl("session", "download", "-E", SESSION, "--out", "elsewhere")
        assert fresh.logins() == 1
    listings = len(fresh.requests("GET", "/files(/|$)")) - before
    assert listings == 2, "one each"
    assert files(fresh.home / "data" / SESSION) == files(fresh.home / "elsewhere" / SESSION) == truth(fresh)


@pytest.mark.fuse
def test_a_damaged_copy_in_the_cache_is_not_copied(fresh, tmp_path):
    """A disk that gives back other bytes changes neither the length nor the time of a file."""
    fresh.home = tmp_path / "both" / "home"
    fresh.home.mkdir(parents=True)
    scans = Path("projects", "MYPROJECT", "SUB001", "SUB001_MR_20240115", "scans")
    with mounting(fresh.url, tmp_path / "both", user=OWNER, password=PASSWORD) as mount:
        mount.walk(str(scans), read=True)
    for path in (fresh.home / ".cache").rglob("blobs/??/*"):
        status = path.stat()
        path.chmod(0o600)
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    fresh.ctl(*DOWNLOAD)
    assert files(fresh.home / "data" / SESSION) == truth(fresh)
    fresh.ctl("session", "download", "-E", SESSION, "--out", "elsewhere")
    assert files(fresh.home / "elsewhere" / SESSION) == truth(fresh)


@pytest.mark.fuse
def test_by_force_nothing_comes_from_the_cache(tmp_path):
    """Without digests a copy of the right length may be an older one."""
    home = tmp_path / "both" / "home"
    home.mkdir(parents=True)
    with shell(home, digests=False) as site:
        scans = Path("projects", "MYPROJECT", "SUB001", "SUB001_MR_20240115", "scans")
        with mounting(site.url, tmp_path / "both", user=OWNER, password=PASSWORD) as mount:
            mount.walk(str(scans), read=True)
        entry = site.session().scans[0].resources[0].entries[0]
        entry.content = content(entry)[::-1]
        site.ctl(*DOWNLOAD, "--force")
        assert files(home / "data" / SESSION) == truth(site)


def test_a_missing_file_is_made_good_and_a_damaged_one_only_by_force(fresh):
    fresh.ctl(*DOWNLOAD)
    there = sorted((fresh.home / "data").rglob("*.dcm"))
    there[0].write_bytes(b"x" * there[0].stat().st_size)
    there[1].unlink()
    done = fresh.ctl(*DOWNLOAD, "--verify", status=8)
    assert all(str(path.relative_to(fresh.home)) in done.err for path in there[:2])
    times = {path: path.stat().st_mtime_ns for path in there[2:]}
    assert f"{there[0].relative_to(fresh.home)}: is kept" in fresh.ctl(*DOWNLOAD, status=8).err
    assert {path: path.stat().st_mtime_ns for path in there[2:]} == times
    assert there[0].read_bytes() == b"x" * there[0].stat().st_size
    assert there[1].exists()
    fresh.ctl(*DOWNLOAD, "--force")
    assert files(fresh.home / "data" / SESSION) == truth(fresh)
    assert "Verified" in fresh.ctl(*DOWNLOAD, "--verify").err


def test_a_file_that_changed_on_the_server_is_fetched_anew(fresh):
    fresh.ctl(*DOWNLOAD)
    entry = fresh.session().scans[0].resources[0].entries[0]
    entry.content = b"another"
    entry.size, entry.digest = "7", hashlib.md5(b"another").hexdigest()
    before = len(fetched(fresh))
    fresh.ctl(*DOWNLOAD)
    assert len(fetched(fresh)) == before + 1
    assert files(fresh.home / "data" / SESSION) == truth(fresh)


def test_one_file_that_cannot_be_had_leaves_the_others(fresh):
    def lost(request: Request) -> Reply | None:
        return Failed(404, "").reply() if request.path.endswith("/2.1.dcm") else None

    fresh.app.faults.append(lost)
    done = fresh.ctl(*DOWNLOAD, status=8)
    assert "2.1.dcm" in done.err
    wanted = {name: data for name, data in truth(fresh).items() if not name.endswith("/2.1.dcm")}
    assert files(fresh.home / "data" / SESSION) == wanted
    fresh.app.faults.clear()
    before = len(fetched(fresh))
    fresh.ctl(*DOWNLOAD)
    assert len(fetched(fresh)) == before + 1


def test_wrong_bytes_do_not_get_a_name(fresh):
    entry = fresh.session().scans[1].resources[0].entries[0]
    entry.digest = "1" * 32
    done = fresh.ctl(*DOWNLOAD, status=8)
    assert entry.path in done.err
    assert not any(path.name == entry.path for path in (fresh.home / "data").rglob("*"))


def stopped(fresh: Shell, signal_number: int, after: int) -> int:
    """Run a download that is ended when so many files are there; return its exit status."""
    process = subprocess.Popen(
        [*fresh.program, *DOWNLOAD], env=fresh.environment(), cwd=fresh.home, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + LIMIT
    while len(list((fresh.home / "data").rglob("*.dcm"))) < after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        os.sched_yield()
    process.send_signal(signal_number)
    process.communicate(timeout=LIMIT)
    return process.returncode


def held_halfway(shell: Shell) -> threading.Event:
    """Send one half of each large tar, and the other one when the event is set."""
    go_on = threading.Event()

    def hold(request: Request) -> Reply | None:
        if request.query.get("format") != "tar":
            return None
        reply, _ = shell.app._answer(request)

        def pieces() -> Iterator[bytes]:
            whole = b"".join(reply.pieces())
            half = len(whole) // 2
            yield whole[:half]
            if len(whole) > 100_000:
                go_on.wait(LIMIT)
            yield whole[half:]

        return replace(reply, body=pieces())

    shell.app.faults.append(hold)
    return go_on


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_download_is_taken_up_where_it_was(fresh, number, status):
    many(fresh, 200, 20_000)  # more than one batch in each half of the tar
    go_on = held_halfway(fresh)
    try:
        assert stopped(fresh, number, 20) == status
    finally:
        go_on.set()
    there = files(fresh.home / "data" / SESSION)
    named = {name: data for name, data in there.items() if not name.endswith(".part")}
    assert named.items() <= truth(fresh).items(), "whatever has its name is whole"
    assert 20 <= len(named) < len(truth(fresh))
    if number == signal.SIGINT:
        assert named == there, "nothing half-named"
    fresh.app.faults.clear()
    summary = fresh.ctl(*DOWNLOAD, "-o", "json").rows
    assert files(fresh.home / "data" / SESSION) == truth(fresh), "and no rest of the first run"
    assert summary["up_to_date"] == len(named)
    assert summary["copied"] == len(truth(fresh)) - len(named)


def test_the_servers_own_archive(fresh):
    fresh.ctl("scan", "download", "-E", SESSION, "-s", "1,2", "--zip", "--out", "data")
    with zipfile.ZipFile(fresh.home / "data" / SESSION / "scans.zip") as archive:
        inside = sorted(archive.read(name) for name in archive.namelist())
    assert inside == sorted(data for name, data in truth(fresh).items() if name.startswith(("scans/1/", "scans/2/")))


def test_an_archive_that_breaks_off_gets_no_name(fresh):
    whole: list[bool] = []

    def cut(request: Request) -> Reply | None:
        if request.query.get("format") != "zip" or whole:
            return None
        whole.append(True)
        reply, _ = fresh.app._answer(request)
        data = b"".join(reply.pieces())
        return Reply(200, data[: len(data) // 2], "application/zip")

    fresh.app.faults.append(cut)
    fresh.ctl("scan", "download", "-E", SESSION, "-s", "1", "--zip", "--out", "data", status=4)
    assert files(fresh.home / "data") == {}


def test_names_stay_below_the_directory(fresh):
    """Write below the directory whatever the server calls its files."""
    resource = fresh.session().scans[0].resources[0]
    absolute = f"{fresh.home.parent}/escape"  # where it would be seen
    for name in ("../../../escape", absolute, "a/../../../../escape", "..", "new\nline", "con", "x/y"):
        fresh.app.archive.file(resource, name, name.encode())
    fresh.start(*DOWNLOAD)
    outside = [
        path for path in fresh.home.parent.rglob("*escape*") if (fresh.home / "data" / SESSION) not in path.parents
    ]
    assert outside == []
    assert (fresh.home / "data" / SESSION / "scans/1/resources/DICOM/files/x/y").read_bytes() == b"x/y"


def test_a_line_every_ten_seconds_where_there_is_no_terminal(fresh):
    """Move the clock of the program rather than wait."""
    import sys

    code = """if True:
        import sys, time
        import xnatfs.cli.ctl.progress as progress
        from xnatfs.cli import main_xnatctl
        class Fast:
            now = 0.0
            def monotonic(self):
                Fast.now += 1.0
                return Fast.now
        progress.time = Fast()
        sys.exit(main_xnatctl(sys.argv[1:]))
    """
    fast = Shell(fresh.app, fresh.url, fresh.home, fresh.env, (sys.executable, "-c", code))
    done = fast.ctl(*DOWNLOAD)
    said = [line for line in done.err.splitlines() if "downloading" in line]
    assert said
    assert "of 16 files" in said[0]
    assert "B/s" in said[0]
    assert fast.ctl(*DOWNLOAD, "-q", "--force").err == ""


def test_a_terminal_is_shown_a_bar(fresh):
    import pty

    many(fresh, 100)
    fresh.app.site.latency = 0.02
    main, terminal = pty.openpty()
    seen = bytearray()

    def watch() -> None:
        while True:
            try:
                seen.extend(os.read(main, 4096))
            except OSError:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    env = {**fresh.environment(), "TERM": "xterm", "COLUMNS": "160"}
    done = subprocess.run([*fresh.program, *DOWNLOAD], env=env, cwd=fresh.home, stderr=terminal, timeout=LIMIT)
    os.close(terminal)
    watcher.join()
    os.close(main)
    assert done.returncode == 0
    assert all(part in seen.decode(errors="replace") for part in ("downloading", "/116 files", "KiB"))


def test_resources_are_chosen_or_left_out(fresh):
    fresh.ctl(*DOWNLOAD, "--exclude-resource", "DICOM")
    assert [name.rpartition("/")[2] for name in files(fresh.home / "data")] == ["image.nii.gz"]
    fresh.ctl("session", "download", "-E", SESSION, "--out", "other", "-r", "NIFTI")
    assert files(fresh.home / "other") == files(fresh.home / "data")
    assert "NOPE" in fresh.ctl(*DOWNLOAD, "-r", "NOPE", status=5).err
    assert fresh.ctl("resource", "download", SESSION, "QC", "--dry-run").lines == [
        f"{SESSION}/resources/QC/files/qc.txt"
    ]


def test_a_dry_run_lists_and_fetches_nothing(fresh):
    lines = fresh.ctl(*DOWNLOAD, "--dry-run").lines
    assert sorted(lines) == sorted(f"data/{SESSION}/{name}" for name in truth(fresh))
    assert fetched(fresh) == []
    assert not (fresh.home / "data").exists()
