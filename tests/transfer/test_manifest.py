"""Test downloads into a folder that holds files: of earlier runs, of other programs, edited; and two runs at once."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commanding import SESSION, Done, Shell, shell
from tests.support.mounting import LIMIT
from tests.transfer.test_download import DOWNLOAD, content, fetched, files, many, truth
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Failed, Reply
from xnatfs.transfer.manifest import FOLDER

ASSESSORS = (*DOWNLOAD, "--assessors", "--session-resources")


@pytest.fixture(params=[True, False], ids=["digests", "no digests"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    """Provide a demo that states digests, and one that states none."""
    with shell(tmp_path / "home", digests=request.param) as made:
        yield made


def with_assessor(shell: Shell) -> Entry:
    """Add an assessor to the session; return its only file."""
    assessor = shell.app.archive.assessor(shell.session(), "QC_1")
    return shell.app.archive.file(shell.app.archive.resource(assessor.resources, "OUT", "TXT"), "out.txt", b"before")


def change(entry: Entry, data: bytes) -> None:
    """Put other bytes of the same length on the server's disk, a minute later."""
    assert len(data) == len(content(entry))
    entry.content, entry.digest = data, hashlib.md5(data).hexdigest()
    entry.modified += 60


def counted(done: Done) -> tuple[int, int]:
    return done.rows["copied"], done.rows["up_to_date"]


def local(shell: Shell, name: str) -> Path:
    (found,) = (shell.home / "data" / SESSION).rglob(name)
    return found


# -- what is there already ---------------------------------------------------------------------------------------


def test_a_second_run_copies_nothing_and_fetches_nothing(site):
    with_assessor(site)
    site.ctl(*ASSESSORS)
    before, times = len(fetched(site)), times_of(site)
    whole = len(files(site.home / "data"))
    assert counted(site.ctl(*ASSESSORS, "-o", "json")) == (0, whole)
    shutil.rmtree(site.home / ".cache")
    assert counted(site.ctl(*ASSESSORS, "-o", "json")) == (0, whole)
    assert len(fetched(site)) == before
    assert times_of(site) == times


def times_of(shell: Shell) -> dict[Path, tuple[int, int]]:
    found = [path for path in (shell.home / "data").rglob("*") if path.is_file() and FOLDER not in path.parts]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def test_members_of_archives_have_no_date_and_are_not_copied_again(tmp_path):
    with shell(tmp_path / "home", digests=False) as made:
        many(made, 200)
        made.ctl(*DOWNLOAD)
        singly = len(fetched(made))
        assert singly < len(truth(made)), "most came out of an archive"
        shutil.rmtree(made.home / ".cache")
        assert counted(made.ctl(*DOWNLOAD, "-o", "json")) == (0, len(truth(made)))
        assert len(fetched(made)) == singly
        # The date is known by now, so that one which is put back with an older one is another.
        entry = made.session().scans[0].resources[0].entries[-1]
        change(entry, bytes(len(content(entry))))
        entry.modified -= 3600
        assert counted(made.ctl(*DOWNLOAD, "-o", "json"))[0] == 1
        assert files(made.home / "data" / SESSION) == truth(made)


def test_a_changed_file_of_an_assessor_is_copied(site):
    entry = with_assessor(site)
    site.ctl(*ASSESSORS)
    change(entry, b"after.")
    assert counted(site.ctl(*ASSESSORS, "-o", "json"))[0] == 1
    assert local(site, "out.txt").read_bytes() == b"after."


def test_a_file_that_was_put_back_with_an_older_date_is_copied(site):
    entry = site.session().scans[0].resources[0].entries[0]
    site.ctl(*DOWNLOAD)
    change(entry, content(entry)[::-1])
    entry.modified -= 3600
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)


def test_a_file_that_was_only_touched_on_the_server_is_not_copied(site):
    site.ctl(*DOWNLOAD)
    site.session().scans[0].resources[0].entries[0].modified += 60
    assert counted(site.ctl(*DOWNLOAD, "-o", "json"))[0] == 0
    before = len(fetched(site))
    site.ctl(*DOWNLOAD)
    assert len(fetched(site)) == before, "its new date is known now"


def test_a_copy_on_another_disk_is_right_without_being_fetched(site):
    """Compare bytes, since inodes and times differ there."""
    site.ctl(*DOWNLOAD)
    shutil.copytree(site.home / "data", site.home / "copy")
    shutil.rmtree(site.home / "data")
    os.rename(site.home / "copy", site.home / "data")
    before = len(fetched(site))
    assert counted(site.ctl(*DOWNLOAD, "-o", "json")) == (0, len(truth(site)))
    assert len(fetched(site)) == before


def test_files_have_the_time_of_the_session(site):
    site.session().last_modified = "2024-03-01 11:12:13.25"
    site.ctl(*DOWNLOAD)
    assert {mtime for mtime, _ in times_of(site).values()} == {1709291533250000000}


# -- what was edited ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [b"\0" * 1900, b"shorter"], ids=["zeroed", "shorter"])
def test_an_edited_file_is_kept_and_reported_even_with_its_old_time(site, edit):
    site.ctl(*DOWNLOAD)
    path = local(site, "1.0.dcm")
    before = path.stat()
    path.write_bytes(edit)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        done = site.ctl(*DOWNLOAD, "-o", "json", status=8)
        assert f"{path.relative_to(site.home)}: is kept" in done.err
        assert (done.rows["status"], len(done.rows["kept"]), done.rows["copied"]) == ("partial", 1, 0)
        assert path.read_bytes() == edit
    assert path.name in site.ctl(*DOWNLOAD, "--verify", status=8).err
    site.ctl(*DOWNLOAD, "--force")
    assert files(site.home / "data" / SESSION) == truth(site)
    assert "Up to date" in site.ctl(*DOWNLOAD).err


def test_an_edited_file_is_kept_when_the_servers_changes_too(site):
    site.ctl(*DOWNLOAD)
    path = local(site, "1.0.dcm")
    path.write_bytes(b"mine")
    entry = site.session().scans[0].resources[0].entries[0]
    change(entry, content(entry)[::-1])
    site.ctl(*DOWNLOAD, status=8)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("now", ["absent", "a link", "edited"])
def test_a_file_that_changes_while_its_replacement_comes(site, now):
    """A removed file is written; one that was put in its place is left alone."""
    site.ctl(*DOWNLOAD)
    path = local(site, "1.0.dcm")
    entry = site.session().scans[0].resources[0].entries[0]
    change(entry, content(entry)[::-1])

    def change_it(asked: Request) -> Reply | None:
        if "/files" in asked.path and asked.path.endswith((path.name, "/files")) and "format" not in asked.query:
            path.unlink(missing_ok=True)
            if now == "a link":
                path.symlink_to("nowhere")
            elif now == "edited":
                path.write_bytes(b"mine")
        return None

    site.app.faults.append(change_it)
    done = site.ctl(*DOWNLOAD, status=0 if now == "absent" else 8)
    if now == "absent":
        assert path.read_bytes() == content(entry)
    else:
        assert "1.0.dcm: is kept" in done.err
        assert path.is_symlink() if now == "a link" else path.read_bytes() == b"mine"


# -- the session of a folder -------------------------------------------------------------------------------------

ALIKE = ("session", "download", "-E", "BASELINE_MR", "--out", "data")


def two_alike(shell: Shell, *names: str) -> None:
    """Add two sessions of one label with files of one length, and of one name if so."""
    for number, (accession, name) in enumerate(zip(("XNAT_E00011", "CENTRAL_E00012"), names, strict=True)):
        scan = shell.app.archive.scan(shell.session(accession), "1", "T1")
        dicom = shell.app.archive.resource(scan.resources, "DICOM", "DICOM")
        shell.app.archive.file(dicom, name, b"project %d" % number)


@pytest.mark.parametrize("names", [("x.dcm", "x.dcm"), ("a.dcm", "b.dcm")], ids=["same names", "others"])
@pytest.mark.parametrize("how", [(), ("--verify",), ("--dry-run",), ("--zip",), ("--force",)], ids=" ".join)
def test_another_session_of_that_label_is_refused(site, names, how):
    two_alike(site, *names)
    site.ctl(*ALIKE, "-P", "A")
    before = files(site.home / "data")
    done = site.ctl(*ALIKE, "-P", "B", *how, status=1)
    assert len(done.err.splitlines()) == 1
    assert "data/BASELINE_MR holds session XNAT_E00011 (A/BASELINE_MR) of http" in done.err
    assert "CENTRAL_E00012 (B/BASELINE_MR)" in done.err
    assert files(site.home / "data") == before
    assert "Up to date" in site.ctl(*ALIKE, "-P", "A").err


def test_a_folder_says_whose_it_is(site):
    site.ctl(*DOWNLOAD)
    said = json.loads((site.home / "data" / SESSION / FOLDER / "session.json").read_text())
    assert said == {
        "server": site.url,
        "session": SESSION,
        "project": "MYPROJECT",
        "label": "SUB001_MR_20240115",
    }


@pytest.mark.parametrize("names", [("x.dcm", "x.dcm"), ("a.dcm", "b.dcm")], ids=["same names", "others"])
def test_a_folder_without_a_record_is_refused_unless_its_files_agree(site, names):
    """Start from a folder as the previous version has left it."""
    two_alike(site, *names)
    site.ctl(*ALIKE, "-P", "A")
    shutil.rmtree(site.home / "data/BASELINE_MR" / FOLDER)
    before = files(site.home / "data")
    done = site.ctl(*ALIKE, "-P", "B", status=1)
    assert "holds files that are not those of session CENTRAL_E00012" in done.err
    assert files(site.home / "data") == before
    assert "Up to date" in site.ctl(*ALIKE, "-P", "A").err


def test_a_folder_without_a_record_may_hold_other_parts_of_the_session(site):
    site.ctl("scan", "download", "-E", SESSION, "-s", "1", "--out", "data")
    shutil.rmtree(site.home / "data" / SESSION / FOLDER)
    site.ctl("scan", "download", "-E", SESSION, "-s", "2,3,10,4-MR2", "--out", "data")
    assert files(site.home / "data" / SESSION) == truth(site)


def test_a_folder_without_a_record_is_taken_over_but_not_what_differs_in_it(site):
    site.ctl(*DOWNLOAD)
    shutil.rmtree(site.home / "data" / SESSION / FOLDER)
    edited, missing = local(site, "1.0.dcm"), local(site, "2.0.dcm")
    edited.write_bytes(b"e" * edited.stat().st_size)
    missing.unlink()
    done = site.ctl(*DOWNLOAD, "-o", "json", status=8)
    assert counted(done) == (1, len(truth(site)) - 2)
    assert edited.read_bytes() == b"e" * edited.stat().st_size
    assert missing.exists()


# -- two at once -------------------------------------------------------------------------------------------------


def begin(shell: Shell, *words: str) -> subprocess.Popen[str]:
    env = shell.environment()
    command = [*shell.program, *words]
    return subprocess.Popen(command, env=env, cwd=shell.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_downloads_into_one_folder_lose_nothing(site):
    many(site, 300)
    done = [begin(site, *DOWNLOAD) for _ in range(2)]
    said = [process.communicate(timeout=LIMIT)[1] for process in done]
    assert [process.returncode for process in done] == [0, 0], said
    assert files(site.home / "data" / SESSION) == truth(site), "no draft is left, either"


def test_two_downloads_of_different_scans_share_a_folder(site):
    words = [("scan", "download", "-E", SESSION, "-s", scan, "--out", "data") for scan in ("1", "2,3,10,4-MR2")]
    done = [begin(site, *each) for each in words]
    said = [process.communicate(timeout=LIMIT)[1] for process in done]
    assert [process.returncode for process in done] == [0, 0], said
    assert files(site.home / "data" / SESSION) == truth(site)
    before = len(fetched(site))
    assert "Up to date" in site.ctl(*DOWNLOAD).err
    assert len(fetched(site)) == before


def test_the_second_says_that_it_waits_and_can_be_ended(fresh):
    import fcntl

    fresh.ctl(*DOWNLOAD)
    with open(fresh.home / "data" / SESSION / FOLDER / "lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = begin(fresh, *DOWNLOAD)
        assert second.stderr is not None
        assert f"Waiting for another command that writes to data/{SESSION}" in second.stderr.readline()
        third = begin(fresh, *DOWNLOAD)
        assert third.stderr is not None
        third.stderr.readline()
        third.terminate()
        third.communicate(timeout=LIMIT)
    assert "Up to date" in second.communicate(timeout=LIMIT)[1]
    assert second.returncode == 0


def test_without_locks_each_draft_has_a_name_of_its_own(fresh):
    """Write the same file by two runs, each whole, as where the file system of `--out` has no locks."""
    code = """if True:
        import errno, sys
        def none(descriptor):
            raise OSError(errno.ENOLCK, "No locks available")
        import xnatfs.transfer.manifest
        xnatfs.transfer.manifest.lock = none
        from xnatfs.cli import main_xnatctl
        sys.exit(main_xnatctl(sys.argv[1:]))
    """
    many(fresh, 100)
    lockless = Shell(fresh.app, fresh.url, fresh.home, fresh.env, (sys.executable, "-c", code))
    done = [begin(lockless, *DOWNLOAD) for _ in range(2)]
    said = [process.communicate(timeout=LIMIT)[1] for process in done]
    assert [process.returncode for process in done] == [0, 0], said
    assert files(fresh.home / "data" / SESSION) == truth(fresh)


def test_drafts_of_killed_commands_are_removed(fresh):
    fresh.ctl(*DOWNLOAD)
    folder = local(fresh, "1.0.dcm").parent
    (folder / f".{'0' * 16}.part").write_bytes(b"of an earlier version")
    (folder / f".{'0' * 16}.{'1' * 16}.part").write_bytes(b"of this one")
    (folder / ".mine.part").write_bytes(b"of the user")
    fresh.ctl(*DOWNLOAD)
    assert sorted(path.name for path in folder.glob(".*")) == [".mine.part"]


# -- records that are damaged, planted, or another account's -------------------------------------------------------


@pytest.mark.parametrize("found", [b"", b"{", b"null"])
def test_a_record_that_cannot_be_read_is_nobodys(site, found):
    """Refuse an empty record, as a power failure may leave: no other session is written among these files."""
    site.ctl(*DOWNLOAD)
    record = site.home / "data" / SESSION / FOLDER / "session.json"
    record.write_bytes(found)
    before = files(site.home / "data")
    done = site.ctl(*DOWNLOAD, "--force", status=1)
    assert f"data/{SESSION}/{FOLDER}/session.json cannot be read" in done.err
    assert files(site.home / "data") == before
    record.unlink()
    assert "Up to date" in site.ctl(*DOWNLOAD).err


def test_one_file_that_two_sessions_share_makes_no_folder_theirs(site):
    two_alike(site, "a.dcm", "b.dcm")
    for session in [each for each in site.app.archive.experiments.values() if each.label == "BASELINE_MR"]:
        resource = site.app.archive.resource(session.resources, "protocol", "PDF")
        site.app.archive.file(resource, "protocol.pdf", b"of all studies")
    with_resources = (*ALIKE, "--session-resources")
    site.ctl(*with_resources, "-P", "A")
    shutil.rmtree(site.home / "data/BASELINE_MR" / FOLDER)
    before = files(site.home / "data")
    site.ctl(*with_resources, "-P", "B", status=1)
    assert files(site.home / "data") == before
    assert "Up to date" in site.ctl(*with_resources, "-P", "A").err


def test_an_empty_file_is_fetched_again(site):
    """Replace an empty file, as a power failure may leave: it holds no work."""
    site.ctl(*DOWNLOAD)
    victim = next(path for path in (site.home / "data").rglob("*.dcm") if path.stat().st_size)
    victim.write_bytes(b"")
    assert counted(site.ctl(*DOWNLOAD, "-o", "json"))[0] == 1
    assert files(site.home / "data" / SESSION) == truth(site)


def test_a_record_that_is_a_link_is_refused(site):
    elsewhere = site.home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "session.json").write_text("mine")
    folder = site.home / "data" / SESSION
    folder.mkdir(parents=True)
    (folder / FOLDER).symlink_to(elsewhere)
    done = site.ctl(*DOWNLOAD, status=1)
    assert "cannot be read" in done.err
    (elsewhere / "session.json").unlink()
    done = site.ctl(*DOWNLOAD, status=74)
    assert f"{FOLDER}: is not a directory" in done.err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(("name", "status"), [("session.json", 1), ("files.jsonl", 74)])
def test_a_record_that_is_a_pipe_is_not_waited_for(site, name, status):
    folder = site.home / "data" / SESSION / FOLDER
    folder.mkdir(parents=True)
    os.mkfifo(folder / name)
    done = site.start(*DOWNLOAD)
    assert (done.status, len(done.err.splitlines())) == (status, 1), done
    assert name in done.err


def test_a_server_that_has_moved_is_believed_by_force(site):
    site.ctl(*DOWNLOAD)
    record = site.home / "data" / SESSION / FOLDER / "session.json"
    record.write_text(record.read_text().replace(site.url, "https://old.example.org"))
    assert "--force if it is the same server" in site.ctl(*DOWNLOAD, status=1).err
    site.ctl(*DOWNLOAD, "--force")
    assert "Up to date" in site.ctl(*DOWNLOAD).err


def test_a_closed_pipe_hides_no_failure(site):
    site.ctl(*DOWNLOAD)
    edited = next(path for path in (site.home / "data").rglob("*.dcm"))
    edited.write_bytes(b"edited")
    command = [*site.program, *DOWNLOAD, "-o", "json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.Popen(command, env=site.environment(), cwd=site.home, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert "is kept" in done.communicate(timeout=LIMIT)[1].decode()
    assert done.returncode == 8


# -- one that fails ----------------------------------------------------------------------------------------------


def test_one_broken_catalogue_leaves_the_others(site):
    site.session().scans[1].resources[0].broken = True
    wanted = {name: data for name, data in truth(site).items() if not name.startswith("scans/2/")}
    done = site.ctl(*DOWNLOAD, "-o", "json", status=8)
    assert f"data/{SESSION}/scans/2/resources/DICOM: the server cannot read the catalogue" in done.err
    assert [each["path"] for each in done.rows["failed"]] == ["scans/2/resources/DICOM"]
    assert files(site.home / "data" / SESSION) == wanted
    assert len(site.ctl(*DOWNLOAD, "--dry-run", status=8).lines) == len(wanted)
    assert "Verified" in site.ctl(*DOWNLOAD, "--verify", status=8).err
    alone = site.ctl("scan", "download", "-E", SESSION, "-s", "2", "--out", "data", status=4)
    assert "cannot read the catalogue" in alone.err
    site.ctl("scan", "download", "-E", SESSION, "-s", "1", "--out", "data")
    site.session().scans[1].resources[0].broken = False
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)


ZIP = ("scan", "download", "-E", SESSION, "-s", "1", "--zip", "--out", "data")


def test_an_archive_that_is_there_is_not_replaced(fresh):
    fresh.ctl(*ZIP)
    path = fresh.home / "data" / SESSION / "scans.zip"
    before = path.read_bytes()
    asked = fresh.asked("scan", "download", "-E", SESSION, "-s", "2", "--zip", "--out", "data", status=1)
    assert not any(line.endswith("/files") for line in asked)
    assert path.read_bytes() == before
    assert f"data/{SESSION}/scans.zip exists already" in fresh.ctl(*ZIP, status=1).err
    fresh.ctl("scan", "download", "-E", SESSION, "-s", "2", "--zip", "--out", "data", "--force")
    assert path.read_bytes() != before


def test_a_dry_run_fetches_no_archive(fresh):
    assert fresh.ctl(*ZIP, "--dry-run").lines == [f"data/{SESSION}/scans.zip"]
    assert not (fresh.home / "data").exists()


@pytest.mark.parametrize("more", [("--verify",), ("-r", "DICOM"), ("--extract",)], ids=" ".join)
def test_an_archive_takes_no_option_that_it_would_ignore(fresh, more):
    done = fresh.ctl(*ZIP, *more, status=2)
    assert "give either --zip or --" in done.err
    assert fresh.requests("GET") == []


def refusing(site: Shell, pattern: str, status: int) -> None:
    """Answer all requests with this status whose path is like the pattern."""

    def refused(request: Request) -> Reply | None:
        return Failed(status, "").reply() if re.search(pattern, request.path) else None

    site.app.faults.append(refused)


@pytest.mark.parametrize("lists", ["/assessors$", "/assessors/.*/files/"])
def test_a_list_of_assessors_that_is_refused_leaves_the_others(fresh, lists):
    with_assessor(fresh)
    refusing(fresh, lists, 403)
    assert "is not open to jane" in fresh.ctl(*ASSESSORS, status=8).err
    there = files(fresh.home / "data" / SESSION)
    assert truth(fresh).items() <= there.items()


def test_bytes_are_on_the_disk_before_a_file_has_its_name(fresh):
    """Sync before the rename: a power failure would leave an empty file, which then counts as edited."""
    code = """if True:
        import os, sys
        import xnatfs.transfer.copying as copying
        synced, replace, sync_drafts = set(), os.replace, copying.sync_drafts
        def key(status):
            return status.st_ino, status.st_size
        def synchronized(call):
            def sync(descriptor):
                call(descriptor)
                synced.add(key(os.fstat(descriptor)))
            return sync
        def all_synchronized(drafts):
            sync_drafts(drafts)
            synced.update(key(os.stat(draft.path)) for draft in drafts)
        def checked(source, target):
            if os.fspath(target).startswith("data/"):
                assert key(os.stat(source)) in synced, target
                print(target, file=sys.stderr)
            replace(source, target)
        os.fsync, os.fdatasync, os.replace = synchronized(os.fsync), synchronized(os.fdatasync), checked
        copying.sync_drafts = all_synchronized
        from xnatfs.cli import main_xnatctl
        sys.exit(main_xnatctl(sys.argv[1:]))
    """
    checking = Shell(fresh.app, fresh.url, fresh.home, fresh.env, (sys.executable, "-c", code))
    renamed = {line for line in checking.ctl(*DOWNLOAD).err.splitlines() if line.startswith("data/")}
    assert {f"data/{SESSION}/{name}" for name in truth(fresh)} < renamed
    assert f"data/{SESSION}/{FOLDER}/session.json" in renamed
    assert f"data/{SESSION}/scans.zip" in checking.ctl(*ZIP).err.splitlines()


@pytest.mark.parametrize("there", [True, False], ids=["edited", "made"])
def test_a_file_that_is_written_while_its_replacement_comes_is_kept(site, there):
    entry = site.session().scans[0].resources[0].entries[0]
    if there:
        site.ctl(*DOWNLOAD)
    change(entry, content(entry)[::-1])
    path = site.home / "data" / SESSION / f"scans/1/resources/DICOM/files/{entry.path}"

    def edit(request: Request) -> Reply | None:
        if request.method == "GET" and request.path.endswith(f"/{entry.path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"mine")
        return None

    site.app.faults.append(edit)
    done = site.ctl(*DOWNLOAD, status=8)
    assert f"{path.relative_to(site.home)}: is kept" in done.err
    assert path.read_bytes() == b"mine"
    site.ctl(*DOWNLOAD, "--force")
    assert files(site.home / "data" / SESSION) == truth(site)
