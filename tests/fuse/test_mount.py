"""Mount the demo archive, and look at it with real programs.

The expected names and contents are the demo's own manifest, written by hand beside what it plants.
"""

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.demos import Demo, serving
from tests.support.failing import OWN_MOUNTS
from tests.support.mounting import (
    LIMIT,
    SCRIPTS,
    WALK,
    Mount,
    daemons,
    end,
    environment,
    mounted_file_system,
    mounting,
    run,
)
from xnatfs.content.blob import SMALL_FILE_BYTES as SMALL
from xnatfs.demo.archive.model import Archive
from xnatfs.fuse.mount import READ_AHEAD_KB

pytestmark = pytest.mark.fuse

XNATFS = SCRIPTS / "xnatfs"
Path_ = tuple[str, ...]


@pytest.fixture(scope="module")
def whole(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Provide one mount for all tests that only look at the whole."""
    views = ("--view", "projects,experiments,subjects,prearchive")  # `test_views` looks at the others
    with mounting(demo.url, tmp_path_factory.mktemp("whole"), *views, **demo.login) as mount:
        mount.expected_in_log += demo.planted_warnings
        yield mount


@pytest.fixture(scope="module")
def seen(whole: Mount) -> dict[Path_, dict[str, Any]]:
    """Read every entry; the second walk finds what the first one made known (links)."""
    whole.walk()
    return by_path(whole.walk(read=True))


@pytest.fixture
def mount(demo: Demo, tmp_path: Path) -> Iterator[Mount]:
    """Provide a mount that no program has looked into yet, of a demo without requests yet."""
    with mounting(demo.url, tmp_path, **demo.login) as fresh:
        demo.forget_requests()
        yield fresh


def by_path(entries: list[dict[str, Any]]) -> dict[Path_, dict[str, Any]]:
    found: dict[Path_, dict[str, Any]] = {}
    for entry in entries:  # a directory that may not be read is there twice: seen, and an error
        found.setdefault(tuple(entry["path"]), {}).update(entry)
    return found


# -- the whole archive -----------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_manifest(demo, seen):
    assert {(path, entry.get("kind")) for path, entry in seen.items() if "kind" in entry} == {
        (entry.path, entry.kind) for entry in demo.manifest
    }


def test_the_contents_are_those_of_the_manifest(demo, seen):
    wanted = {e.path: e.md5 for e in demo.manifest if e.kind == "file" and not e.error}
    assert {path: entry["md5"] for path, entry in seen.items() if "md5" in entry} == wanted


def test_the_sizes_are_those_of_the_manifest_after_reading(demo, seen, whole):
    again = by_path(whole.walk())
    for entry in demo.manifest:
        if entry.kind == "file" and not entry.error:
            assert again[entry.path]["size"] == entry.size, entry.path
            assert again[entry.path]["blocks"] == (entry.size + 511) // 512


def test_the_times_are_those_of_the_manifest(demo, seen):
    for entry in demo.manifest:
        if entry.mtime is not None and entry.kind != "link":
            assert seen[entry.path]["mtime"] == pytest.approx(entry.mtime, abs=1e-3), entry.path


def test_the_links_are_those_of_the_manifest(demo, seen):
    wanted = {e.path: e.target for e in demo.manifest if e.kind == "link"}
    assert {path: entry["target"] for path, entry in seen.items() if entry.get("kind") == "link"} == wanted


def test_the_errors_are_those_that_were_planted(demo, seen):
    found = {(path, entry["error"]) for path, entry in seen.items() if entry.get("error")}
    assert found == {(e.path, e.error) for e in demo.manifest if e.error}


def test_modes_and_links_are_honest(seen):
    assert {(e["kind"], e["mode"], e["nlink"]) for e in seen.values() if "mode" in e} == {
        ("dir", 0o755, 1),
        ("file", 0o644, 1),
        ("link", 0o777, 1),
    }


def test_only_a_shared_file_is_one_inode_in_two_places(seen):
    places: dict[int, set[tuple[str, str | None]]] = {}
    for path, entry in seen.items():
        places.setdefault(entry["inode"], set()).add((path[-1] if "md5" in entry else "/".join(path), entry.get("md5")))
    assert [found for found in places.values() if len(found) > 1] == []


# -- programs --------------------------------------------------------------------------------------------------


def complaints(stderr: str) -> set[str]:
    """Return the paths that a program complained about, from the mount's root."""
    return {match for match in re.findall(r"projects/[^\n]*", stderr)}


def planted(demo: Demo, *kinds: str) -> list[Path_]:
    return sorted(entry.path for entry in demo.manifest if entry.error and entry.kind in kinds)


LOOKING = {
    "ls": ["ls", "-lR", "."],
    "find": ["find", ".", "-ls"],
    "du": ["du", "-ab", "."],
    "tree": ["tree", "-a", "."],
}


@pytest.mark.parametrize("program", LOOKING)
def test_looking_at_everything_complains_of_the_closed_project_alone(demo, whole, seen, program):
    done = run(*LOOKING[program], cwd=whole.path, env={**os.environ, "LC_ALL": "C.UTF-8"})
    messages = [line for line in done.stderr.splitlines() if line]
    if program == "tree":  # says it in its output
        messages = [line for line in done.stdout.splitlines() if "error opening dir" in line]
    assert len(messages) == len(planted(demo, "dir")), messages
    assert all("Permission denied" in line or program == "tree" for line in messages)


def test_du_adds_up(demo, whole, seen):
    done = run("du", "-ab0", "projects", cwd=whole.path)
    found = {path: int(size) for size, _, path in (line.partition("\t") for line in done.stdout.split("\0")) if path}
    for entry in demo.manifest:
        if entry.path[0] == "projects" and entry.kind == "file" and not entry.error:
            assert found["/".join(entry.path)] == entry.size


COPYING: dict[str, Callable[[Path, Path], list[str]]] = {
    "cp": lambda source, target: ["cp", "-r", f"{source}/projects", f"{target}/"],
    "rsync": lambda source, target: ["rsync", "-a", f"{source}/projects", f"{target}/"],
    "tar": lambda source, target: ["sh", "-c", f"tar -C {source} -cf - projects | tar -C {target} -xf -"],
}


@pytest.mark.parametrize("program", COPYING)
def test_a_copy_is_the_archive_less_what_cannot_be_read(demo, whole, tmp_path, program):
    whole.walk("projects")
    target = tmp_path / "copy"
    target.mkdir()
    done = run(*COPYING[program](whole.path, target), env={**os.environ, "LC_ALL": "C.UTF-8"})
    copied = {tuple(e["path"]): e for e in walk_local(target)}  # but for what is made from listings
    wanted = {e.path: e for e in demo.manifest if e.path[0] == "projects"}
    assert {p: e["md5"] for p, e in copied.items() if "md5" in e and not wanted[p].error} == {
        p: e.md5 for p, e in wanted.items() if e.kind == "file" and not e.error
    }
    for path in planted(demo, "file"):
        assert path[-1] in done.stderr or repr(path[-1])[1:-1] in done.stderr
    shutil.rmtree(target)


def walk_local(root: Path) -> list[dict[str, Any]]:
    import json

    done = run(sys.executable, WALK, "--read", root)
    entries: list[dict[str, Any]] = json.loads(done.stdout)
    run("chmod", "-R", "u+w", root)
    return entries


@pytest.mark.parametrize("program", [["md5sum"], ["grep", "-c", "no such text"]])
def test_reading_everything_complains_of_what_was_planted_alone(demo, whole, seen, program):
    done = run(
        "sh",
        "-c",
        'find projects -type f -print0 2>/dev/null | xargs -0 "$@" >/dev/null',
        "sh",
        *program,
        cwd=whole.path,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    messages = [line for line in done.stderr.splitlines() if "Input/output error" in line]
    assert len(messages) == len(done.stderr.splitlines()) == len(planted(demo, "file")), done.stderr


def test_a_mapped_file_is_the_file(demo, whole):
    entry = max((e for e in demo.manifest if e.kind == "file" and not e.error), key=lambda e: e.size)
    code = (
        "import hashlib, mmap, sys\n"
        "with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n"
        "    tail = m[-1000:]\n"
        "    print(hashlib.md5(m[:]).hexdigest(), len(tail))\n"
    )
    done = run(sys.executable, "-c", code, whole.path.joinpath(*entry.path))
    assert done.stdout.split() == [entry.md5, "1000"], done.stderr


def test_nothing_can_be_changed(demo, whole):
    file = whole.path.joinpath(*next(e.path for e in demo.manifest if e.kind == "file" and not e.error))
    for command in (
        ["touch", file.parent / "new"],
        ["mkdir", file.parent / "new"],
        ["rm", "-f", file],
        ["mv", file, file.parent / "other"],
        ["ln", "-s", "x", file.parent / "link"],
        ["chmod", "600", file],
        ["truncate", "-s", "0", file],
        ["setfattr", "-n", "user.x", "-v", "1", file],
        ["sh", "-c", f"echo x >> '{file}'"],
    ):
        done = run(*command)
        assert "Read-only file system" in done.stderr, (command, done.stderr)


def test_facts_are_extended_attributes(demo, whole):
    scan = next(e.path for e in demo.manifest if len(e.path) == 6 and e.path[4] == "scans")
    done = run("getfattr", "-d", "--absolute-names", whole.path.joinpath(*scan))
    assert f'user.xnat.id="{scan[5]}"' in done.stdout


# -- requests --------------------------------------------------------------------------------------------------


def session_path(demo: Demo) -> Path_:
    """Return the path of a session with all four parts."""
    return max(
        (e.path for e in demo.manifest if len(e.path) == 4 and e.path[0] == "projects" and e.path[3] != "resources"),
        key=lambda path: len({e.path[4] for e in demo.manifest if e.path[:4] == path and len(e.path) > 5}),
    )


def test_listing_projects_is_one_request(demo, mount):
    run("ls", mount.path / "projects")
    assert demo.asked() == ["GET /data/projects"]


def test_a_session_is_four_requests_and_then_none(demo, mount):
    path = session_path(demo)
    run("ls", mount.path.joinpath(*path[:3]))
    demo.forget_requests()
    for expected in (5, 0):  # its four lists, its document
        run("ls", "-lR", mount.path.joinpath(*path))
        listings = [line for line in demo.asked() if not line.startswith("HEAD ")]
        heads = [line for line in demo.asked() if line.startswith("HEAD ")]
        assert len(listings) == expected, listings
        assert len(heads) == len(set(heads)) == (demo.sizeless(path) if expected else 0)
        demo.forget_requests()


def test_fifty_sessions_are_a_few_requests(demo, mount):
    project = demo.big_project
    run("ls", mount.path / "projects" / project)
    demo.forget_requests()
    done = run("find", mount.path / "projects" / project)
    sessions = {e.path for e in demo.manifest if e.path[:2] == ("projects", project) and len(e.path) == 4}
    sessions = {path for path in sessions if path[3] != "resources"}
    assert len(sessions) >= 50
    assert done.returncode == 0
    # One session alone, then 2 + 4 + 8 + 16 + 19 of them, by their files, their assessors and what their resources
    # state; the scans of all; and of the assessors, of which there are none, that their lists are to be believed.
    below = [line for line in demo.asked() if "/experiments" in line]
    assert len(below) <= 4 + 3 * 5 + 1 + 5, below
    # The resources of the project, and whether any subject has some, which is looked at in a few.
    assert len(demo.asked()) - len(below) <= 1 + 1 + 8, demo.asked()
    shown = {tuple(Path(line).relative_to(mount.path).parts) for line in done.stdout.splitlines()}
    assert shown >= {entry.path for entry in demo.manifest if entry.path[:2] == ("projects", project)}


def test_looking_at_everything_fetches_no_body(demo, mount):
    run("ls", "-lR", mount.path)
    mount.expected_in_log += demo.planted_warnings
    assert [line for line in demo.asked() if re.search(r"^GET .*/files/.", line)] == []


def test_ten_thousand_reads_are_one_login(demo, mount):
    entry = max((e for e in demo.manifest if e.kind == "file" and not e.error), key=lambda e: e.size)
    code = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "for n in range(10000):\n"
        "    os.pread(fd, 512, n * 997 % (os.fstat(fd).st_size - 512))\n"
        "    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
    )
    assert run(sys.executable, "-c", code, mount.path.joinpath(*entry.path)).returncode == 0
    assert demo.logins() == 1


def test_a_file_is_downloaded_once_even_by_the_next_mount(demo, tmp_path):
    entry = next(e for e in demo.manifest if e.kind == "file" and not e.error and 1000 < e.size < SMALL)
    fetched = []
    for _ in range(2):
        with mounting(demo.url, tmp_path, **demo.login) as mount:
            demo.forget_requests()
            for _ in range(2):
                done = run("md5sum", mount.path.joinpath(*entry.path))
                assert done.stdout.split()[0].lstrip("\\") == entry.md5
        fetched.append(len([line for line in demo.asked() if re.search(r"^GET .*/files/.", line)]))
    assert fetched == [1, 0]


# -- a server that changes -------------------------------------------------------------------------------------


def test_what_is_taken_away_from_the_account_is_gone_and_its_cached_bytes_too(tmp_path):
    with serving() as demo, mounting(demo.url, tmp_path, "--ttl", "0", **demo.login) as mount:
        file = mount.path / "projects" / "BRAINS" / "resources" / "protocol" / "protocol.txt"
        assert run("cat", file).stdout == "Lie still.\n"
        members = demo.archive.projects["BRAINS"].members
        role = members.pop(demo.login["user"])
        assert "No such file" in run("cat", file).stderr
        assert "BRAINS" not in run("ls", mount.path / "projects").stdout
        members[demo.login["user"]] = role
        assert wait_for(lambda: run("cat", file).stdout == "Lie still.\n")


def test_a_new_version_of_a_file_is_the_same_inode_with_the_new_bytes(tmp_path):
    with serving() as demo, mounting(demo.url, tmp_path, "--ttl", "0", **demo.login) as mount:
        file = mount.path / "projects" / "BRAINS" / "resources" / "protocol" / "protocol.txt"
        (entry,) = demo.archive.projects["BRAINS"].resources[0].entries
        before = run("stat", "-c", "%i", file).stdout
        assert run("cat", file).stdout == "Lie still.\n"
        entry.content, entry.digest = b"Sit still.\n", hashlib.md5(b"Sit still.\n").hexdigest()
        assert run("cat", file).stdout == "Sit still.\n"
        assert run("stat", "-c", "%i", file).stdout == before


def test_two_contents_of_one_length_and_no_digest_do_not_mix(tmp_path):
    """Keep both contents in inodes of their own: the kernel keeps pages by inode, and both readers would share them."""
    size = 9_000_000
    with serving() as demo, mounting(demo.url, tmp_path, "--revalidate", "0", **demo.login) as mount:
        entry = Archive.file(demo.archive.projects["BRAINS"].resources[0], "raw.dat", b"1" * size, digest="")
        file = mount.path / "projects" / "BRAINS" / "resources" / "protocol" / "raw.dat"
        with subprocess.Popen(
            [sys.executable, "-c", READ_BOTH, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            assert (reader.stdout.readline(), reader.stdout.readline()) == (f"{size} 0\n", "\n")
            entry.content, entry.modified = b"2" * size, entry.modified + 10
            assert reader.communicate("\n", timeout=60)[0] == f"1\n0 {size}\n0 {size}\n"


# Reads a file, and once it was replaced a part of the old one, all of the new one, and all of it once more.
READ_BOTH = """
import os, sys

def count():
    with open(sys.argv[1], "rb") as file:
        if opened:
            print(os.pread(opened.pop(), 1, 5_000_000).decode())
        data = file.read()
    print(data.count(b"1"), data.count(b"2"), flush=True)

opened = []
count()
opened.append(os.open(sys.argv[1], os.O_RDONLY))
print(flush=True)
sys.stdin.readline()
count()
count()
"""


def wait_for(condition: Callable[[], bool]) -> bool:
    """Return whether the condition becomes true within a generous while."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


# -- beginning and end -----------------------------------------------------------------------------------------


def ended(path: Path, home: Path) -> bool:
    """Return whether a mount and its process are gone."""
    return wait_for(lambda: not mounted_file_system(path) and not daemons(home))


@pytest.mark.parametrize("how", ["fusermount3", "umount", "SIGTERM", "SIGINT"])
def test_every_end_is_clean(demo, tmp_path, how):
    home, path = tmp_path / "home", tmp_path / "mnt"
    for made in (home, path):
        made.mkdir()
    env = environment(home, XNAT_USER=demo.login["user"], XNAT_PASS=demo.login["password"])
    try:
        assert run(XNATFS, "mount", "--url", demo.url, path, env=env).returncode == 0
        assert os.listdir(path) != []
        alive = demo.sessions()
        if how.startswith("SIG"):
            for process in daemons(home):
                os.kill(process, getattr(signal, how))
        else:
            command: list[str | Path] = ["fusermount3", "-u"] if how == "fusermount3" else [XNATFS, "umount"]
            run(*command, path, env=env)
        assert ended(path, home)
        assert os.listdir(path) == []
        assert demo.sessions() == alive  # it is every program's, and ends with `xnatctl auth logout`
    finally:
        end(path, home)


def test_the_demo_closes_the_session_that_is_its_own(demo, tmp_path):
    """Close a session that no other program can use: its server ends with the mount."""
    path = tmp_path / "mnt"
    path.mkdir()
    env = environment(tmp_path)
    log = tmp_path / "requests"
    assert run(XNATFS, "demo", "--request-log", log, path, env=env).returncode == 0
    assert run(XNATFS, "umount", path, env=env).returncode == 0
    assert '"DELETE", "path": "/data/JSESSION"' in log.read_text()
    assert not (tmp_path / ".config" / "xnatfs" / "sessions").exists()


def test_the_daemon_holds_no_secret_where_others_could_read_it(demo, mount):
    (process,) = daemons(mount.home)
    proc = Path("/proc") / str(process)
    password = demo.login["password"].encode()
    assert password not in (proc / "cmdline").read_bytes()
    assert password not in (proc / "environ").read_bytes()
    log = mount.log_file.read_bytes()
    assert password not in log
    assert b"JSESSIONID" not in log
    assert mount.log_file.stat().st_mode & 0o77 == 0


def test_the_cache_is_private(mount):
    run("md5sum", *list(mount.path.glob("projects/*/*/*/scans/*/*/*"))[:1])
    modes = {path: path.stat().st_mode & 0o77 for path in (mount.home / ".cache").rglob("*")}
    assert {path for path, mode in modes.items() if mode} == set()


def test_a_log_tells_what_a_person_needs(demo, tmp_path):
    with mounting(demo.url, tmp_path, **demo.login) as mount:
        run("ls", mount.path / "projects")
    log = mount.log_file.read_text()
    assert re.search(rf"xnatfs 0\.\S+: {re.escape(demo.url)} as {demo.login['user']} on {mount.path}", log)
    assert re.search(r"unmounted after \d+ s: \d+ requests, 1 logins", log)


def test_counters_and_tasks_are_logged_on_a_signal(demo, mount):
    assert run("cat", mount.path / "projects/BRAINS/resources/protocol/protocol.txt").stdout == "Lie still.\n"
    (daemon,) = daemons(mount.home)
    for _ in range(50):  # it crashed the interpreter now and then where the running task's stack was looked at
        os.kill(daemon, signal.SIGUSR1)
        time.sleep(0.01)
    counters = re.compile(r" state: (\{.*\})$", re.MULTILINE)
    assert wait_for(lambda: counters.search(mount.log_file.read_text()) is not None)
    state = json.loads(counters.findall(mount.log_file.read_text())[-1])
    assert {name: state[name] for name in ("files", "directories", "readers", "fills", "partials", "reserved")} == {
        **dict.fromkeys(("files", "directories", "readers", "fills", "partials", "reserved"), 0)
    }
    assert (state["hits"], state["misses"], state["fetched"]) == (0, 1, 11)
    assert state["tasks"] > 3
    log = mount.log_file.read_text()
    assert re.search(r"task xnatfs.site.Site._tidy: _tidy \(site.py:\d+\) > sleep", log)
    assert "task xnatfs.common.garbage.keep_collections_short: " in log
    assert run("ls", mount.path).returncode == 0


def test_a_password_is_asked_for_on_a_terminal(demo, tmp_path):
    home, path = tmp_path / "home", tmp_path / "mnt"
    for made in (home, path):
        made.mkdir()
    main, terminal = pty.openpty()
    try:
        command = [str(XNATFS), "mount", "--url", demo.url, str(path)]
        process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment(home), start_new_session=True
        )
        said = converse(main, {"User on": demo.login["user"], "Password of": demo.login["password"]})
        assert process.wait(timeout=60) == 0, said
        assert demo.login["password"] not in said
        assert mounted_file_system(path) == "fuse.xnatfs"
    finally:
        os.close(main)
        os.close(terminal)
        end(path, home)


def converse(main: int, answers: dict[str, str]) -> str:
    """Answer the prompts of a program on a terminal."""
    said = ""
    for prompt, answer in answers.items():
        while prompt not in said or not said.endswith(": "):
            said += os.read(main, 1000).decode()
        os.write(main, f"{answer}\n".encode())
        said += os.read(main, 1000).decode()
    return said


def test_ownership_is_as_asked_for(demo, tmp_path):
    options = ["--uid", "12", "-o", "gid=34,umask=050"]
    with mounting(demo.url, tmp_path, *options, **demo.login) as mount:
        done = run("stat", "-c", "%u %g %a", mount.path / "projects")
        assert done.stdout == "12 34 705\n"


def test_without_xattrs_there_are_none(demo, tmp_path):
    with mounting(demo.url, tmp_path, "--no-xattr", **demo.login) as mount:
        done = run("getfattr", "-d", mount.path / "projects")
        assert "Operation not supported" in done.stderr or done.stdout == ""


def test_two_mounts_share_one_cache(demo, tmp_path):
    entry = next(e for e in demo.manifest if e.kind == "file" and not e.error and 1000 < e.size < SMALL)
    cache = ["--cache-dir", tmp_path / "cache"]
    with mounting(demo.url, tmp_path / "one", *cache, **demo.login) as one:
        with mounting(demo.url, tmp_path / "two", *cache, **demo.login) as two:
            demo.forget_requests()
            for mount in (one, two, one):
                done = run("md5sum", mount.path.joinpath(*entry.path))
                assert done.stdout.split()[0].lstrip("\\") == entry.md5
    assert len([line for line in demo.asked() if re.search(r"^GET .*/files/.", line)]) == 1


# -- the demo command ------------------------------------------------------------------------------------------


def test_the_demo_comes_up_and_goes_with_its_server(tmp_path):
    home, path = tmp_path / "home", tmp_path / "mnt"
    for made in (home, path):
        made.mkdir()
    env = environment(home)
    try:
        done = run(XNATFS, "demo", path, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(daemons(home)) == 2  # the mount and its server
        assert os.listdir(path / "projects") == ["BRAINS", "CLOSED", "OPEN"]
        assert run(XNATFS, "umount", path, env=env).returncode == 0
        assert ended(path, home)
    finally:
        end(path, home)


def test_the_demo_server_ends_even_when_its_mount_is_killed(tmp_path):
    home, path = tmp_path / "home", tmp_path / "mnt"
    for made in (home, path):
        made.mkdir()
    try:
        assert run(XNATFS, "demo", path, env=environment(home)).returncode == 0
        for process in daemons(home):
            if b"xnatfs.demo" not in (Path("/proc") / str(process) / "cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)
        run("fusermount3", "-u", "-z", path)
        assert ended(path, home)
    finally:
        end(path, home)


OWN_PAGES = """
import ctypes, sys
from xnatfs.fuse.mount import give_memory_back

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks".split()]
    _fields_ += [(name, ctypes.c_size_t) for name in "uordblks fordblks keepcost".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
if "ours" in sys.argv:
    give_memory_back()
bytearray(4 * 2**20)  # and let go
before = library.mallinfo2().hblkhd
held = bytearray(2**20)
print(library.mallinfo2().hblkhd - before)
"""


@pytest.mark.parametrize(("word", "own"), [("ours", True), ("as it is", False)])
def test_the_memory_of_a_buffer_is_its_own_and_goes_back_with_it(word, own):
    """Check glibc's mallinfo2(3) for the bytes in pages that malloc has requested one by one."""
    done = subprocess.run([sys.executable, "-c", OWN_PAGES, word], capture_output=True, text=True, check=True)
    assert (int(done.stdout) >= 2**20) is own


def test_the_kernel_reads_ahead_as_much_as_it_may_request_at_once(demo, tmp_path):
    """Check it on a mount that has just begun: the answer to INIT sets it to 128 KiB."""
    with mounting(demo.url, tmp_path, **demo.login) as mount:
        device = os.stat(mount.path).st_dev
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        if not os.access(setting, os.W_OK):
            pytest.skip("only root may set the read-ahead of a mount")
        assert int(setting.read_text()) == READ_AHEAD_KB


def test_umount_ends_the_daemon_although_another_namespace_holds_the_mount(demo, tmp_path):
    with ExitStack() as stack:
        with mounting(demo.url, tmp_path, **demo.login):
            holder = [*OWN_MOUNTS, "--propagation", "private", "sh", "-c", "echo there; exec sleep 600"]
            other = stack.enter_context(subprocess.Popen(holder, stdout=subprocess.PIPE, text=True))
            stack.callback(other.kill)
            assert other.stdout is not None
            assert other.stdout.readline() == "there\n"
