"""Test directories as common programs use them: the first two entries, modes, attributes.

The programs are Debian's. Those that are not installed are skipped by name.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.demos import Demo, serving
from tests.support.failing import AS_STRANGER, OPEN_FUSE, OWN_MOUNTS, STRANGER, XNATFS, Desk, desk
from tests.support.mounting import LIMIT, Mount, daemons, environment, mounting, run
from xnatfs.demo.fixtures.lab import DemoArchive

pytestmark = pytest.mark.fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

SESSION = "projects/BRAINS/SUB001/SUB001_MR1"
DICOM = f"{SESSION}/scans/1/DICOM"

# Lists a directory by the system calls: [name, inode, position behind it, kind], with buffers of a given size.
GETDENTS = """
import ctypes, json, os, struct, sys
path, size, start = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
os.lseek(directory, start, os.SEEK_SET)
buffer, found = ctypes.create_string_buffer(size), []
while (length := libc.syscall(217, directory, buffer, size)) > 0:
    at = 0
    while at < length:
        inode, behind, entry, kind = struct.unpack_from("<QqHB", buffer.raw, at)
        found.append([buffer.raw[at + 19 : at + entry].split(b"\\0")[0].decode(), inode, behind, kind])
        at += entry
assert length == 0, os.strerror(ctypes.get_errno())
print(json.dumps(found))
"""
# Goes back and forth in a directory by the C library: names read on from each position, and all after a rewind.
SEEKDIR = """
import ctypes, json, sys
libc = ctypes.CDLL(None)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir.argtypes = libc.telldir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
directory = libc.opendir(sys.argv[1].encode())
def rest():
    names = []
    while entry := libc.readdir(directory):
        names.append(ctypes.string_at(entry + 19).decode())
    return names
positions = [libc.telldir(directory)]
while libc.readdir(directory):
    positions.append(libc.telldir(directory))
answers = []
for position in reversed(positions):
    libc.seekdir(directory, position)
    answers.append(rest())
libc.rewinddir(directory)
print(json.dumps([answers, rest()]))
"""
BYTES_OF_ONE_ENTRY = 280  # getdents64(2) takes no buffer that cannot hold the longest name


def python(code: str, *arguments: object) -> Any:
    done = run(sys.executable, "-c", code, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


# -- readdir(3) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "projects", SESSION, DICOM])
@pytest.mark.parametrize("size", [BYTES_OF_ONE_ENTRY, 2**20])
def test_a_directory_lists_itself_and_the_one_above_first(mount, path, size):
    listed = python(GETDENTS, mount.path / path, size, 0)
    itself = os.stat(mount.path / path).st_ino
    above = os.stat(mount.path / path / "..").st_ino if path else itself
    assert [entry[:2] for entry in listed[:2]] == [[".", itself], ["..", above]]
    assert {entry[3] for entry in listed[:2]} == {4}  # DT_DIR
    assert sorted(entry[0] for entry in listed[2:]) == sorted(os.listdir(mount.path / path))
    assert len({entry[2] for entry in listed}) == len(listed)


def test_a_listing_goes_on_from_each_of_its_positions(mount):
    listed = python(GETDENTS, mount.path / DICOM, 2**20, 0)
    names = [entry[0] for entry in listed]
    assert len(names) > 4
    for number, (_, _, behind, _) in enumerate(listed, 1):
        assert [entry[0] for entry in python(GETDENTS, mount.path / DICOM, BYTES_OF_ONE_ENTRY, behind)] == names[
            number:
        ]


def test_a_program_seeks_in_a_directory_and_rewinds(mount):
    answers, again = python(SEEKDIR, mount.path / DICOM)
    assert answers == [again[-count:] if count else [] for count in range(len(again) + 1)]
    assert again[:2] == [".", ".."]


def test_a_name_over_255_bytes_is_too_long_as_everywhere(mount):
    assert "No such file" in run("stat", mount.path / "projects" / ("x" * 255)).stderr
    assert "File name too long" in run("stat", mount.path / "projects" / ("x" * 256)).stderr
    assert run("stat", "-f", "-c", "%l", mount.path).stdout == "255\n"


def inodes(mount: Mount) -> int:
    """Return how many inodes the kernel has references to, as the mount counts them."""
    told = mount.log_file.read_text().count(" state: ")
    (daemon,) = daemons(mount.home)
    os.kill(daemon, signal.SIGUSR1)
    while len(found := re.findall(r" state: (\{.*\})\n", mount.log_file.read_text())) == told:
        time.sleep(0.01)
    return int(json.loads(found[-1])["inodes"])


@pytest.mark.skipif(not os.access("/proc/sys/vm/drop_caches", os.W_OK), reason="the kernel's caches are root's")
def test_every_entry_that_was_listed_is_forgotten_again(demo, tmp_path):
    """Count references as the kernel does: one more here would stay for ever, and one less is ESTALE."""
    with mounting(demo.url, tmp_path, **demo.login) as mount:
        assert inodes(mount) == 1
        for size in (BYTES_OF_ONE_ENTRY, 2**20):
            for path in ("", "projects", "projects/BRAINS", SESSION, DICOM):
                python(GETDENTS, mount.path / path, size, 0)
        python(SEEKDIR, mount.path / DICOM)
        assert inodes(mount) > 10
        deadline = time.monotonic() + LIMIT
        while inodes(mount) > 1 and time.monotonic() < deadline:
            Path("/proc/sys/vm/drop_caches").write_text("2")
        assert inodes(mount) == 1
        assert run("ls", mount.path / DICOM).returncode == 0


@needs("octave")
def test_octave_finds_every_image_behind_the_first_two_entries(mount, tmp_path):
    code = f"d = dir('{mount.path / DICOM}'); d = d(3:end); printf('%s\\n', d.name)"
    done = run(
        "octave-cli", "--no-gui", "--norc", "--eval", code, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(os.listdir(mount.path / DICOM))


# -- experiments/ and subjects/ ----------------------------------------------------------------------------------


def test_every_link_is_as_long_as_it_says_and_leads_to_its_item(mount):
    for directory in ("experiments", "subjects"):
        found = os.listdir(mount.path / directory)
        assert found
        for accession in found:
            path = mount.path / directory / accession
            assert os.lstat(path).st_size == len(os.fsencode(os.readlink(path)))
            assert os.getxattr(path, "user.xnat.id") == os.fsencode(accession)


def test_a_copy_of_the_links_has_what_they_lead_to(demo, tmp_path):
    with mounting(demo.url, tmp_path, **demo.login) as mount:
        mount.expected_in_log += demo.planted_warnings
        run("cp", "-rL", mount.path / "experiments", tmp_path / "copy")
        links = {
            entry.path[1]: entry.target for entry in demo.manifest if entry.path[0] == "experiments" and entry.target
        }
        assert {path.name for path in (tmp_path / "copy").iterdir()} == links.keys()
        for accession, target in links.items():
            if "/FAULTS/" in target:  # its files cannot all be copied
                continue
            place = tuple(target.removeprefix("../").split("/"))
            files = {e.path[len(place) :] for e in demo.manifest if e.path[: len(place)] == place and e.kind == "file"}
            copied = tmp_path / "copy" / accession
            made = {(name,) for name in ("session.json", "session.xml", "scans.tsv")}
            assert {path.relative_to(copied).parts for path in copied.rglob("*") if path.is_file()} - made == files


# -- attributes --------------------------------------------------------------------------------------------------


def with_long_notes(archive: DemoArchive) -> None:
    """Add notes of lengths at which file systems, and then the kernel, take no more."""
    scans = archive.experiments["DEMO_E00001"].scans
    for scan, length in zip(scans, (2000, 5000, 2**16, 2**16 + 1, 300_000), strict=False):
        scan.note = "x" * length


@needs("rsync", "getfattr")
def test_a_copy_with_all_attributes_is_whole(tmp_path):
    with serving(change=with_long_notes) as demo, mounting(demo.url, tmp_path, **demo.login) as mount:
        source, copy = mount.path / SESSION, tmp_path / "copy"
        done = run("rsync", "-aX", f"{source}/", copy)
        assert (done.returncode, done.stderr) == (0, "")
        listed = run("getfattr", "-R", "-d", "--absolute-names", source)
        assert listed.stderr == ""
        copied = run("getfattr", "-R", "-d", "--absolute-names", copy)
        assert "user.xnat.note" in copied.stdout
        assert sorted(copied.stdout.replace(str(copy), str(source)).split("\n\n")) == sorted(
            listed.stdout.split("\n\n")
        )


# -- as an ordinary user -----------------------------------------------------------------------------------------


@pytest.fixture
def sitting() -> Iterator[Desk]:
    with desk() as made:
        made.belongs_to_stranger()
        yield made


def as_user(sitting: Desk, demo: Demo, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script beside a mount `$M` that an ordinary user has made, in a mount namespace of its own.

    It runs in a directory that it may write to.
    """
    stage = (
        f"{OPEN_FUSE}; echo user_allow_other > /mnt/fuse.conf; mount --bind /mnt/fuse.conf /etc/fuse.conf;"
        f" (cat /etc/passwd; echo jane:x:{STRANGER}:{STRANGER}::{sitting.home}:/bin/sh) > /mnt/passwd;"
        " mount --bind /mnt/passwd /etc/passwd;"  # fusermount3 wants to know the name
        f' exec {AS_STRANGER} sh -ec "$0"'
    )
    login = {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
    # A git of an ordinary user does not look for its settings in root's home.
    env = environment(sitting.home, M=str(sitting.place), GIT_CONFIG_GLOBAL=str(sitting.home / ".gitconfig"), **login)
    options_text = " ".join(options)
    mounted = (
        f'{XNATFS} mount --quiet --url {demo.url} {options_text} "$M"; trap \'{XNATFS} umount "$M"\' EXIT;\n{script}'
    )
    return run(*OWN_MOUNTS, "sh", "-ec", stage, mounted, env=env, cwd=sitting.home)


def succeeds(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_root
def test_modes_are_those_of_other_mounts_and_a_write_is_refused_as_read_only(demo, sitting):
    script = f"""
        stat -c %a $M/{DICOM} $M/projects/BRAINS/resources/protocol/protocol.txt
        python3 - <<'END'
import errno, os
path = os.environ["M"] + "/projects/BRAINS/resources/protocol/protocol.txt"
def said(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
print(os.access(path, os.R_OK), os.access(path, os.W_OK))
print(said(os.open, path, os.O_RDWR), said(os.mkdir, os.path.dirname(path) + "/x"), said(os.unlink, path))
END
    """
    assert succeeds(as_user(sitting, demo, script)).split() == ["755", "644", "True", "False", *["EROFS"] * 3]


@needs_root
def test_a_copy_can_be_written_into_and_deleted(demo, sitting):
    script = f"""
        cp -r $M/{SESSION} copy
        echo more >> "$(find copy -type f | head -n 1)"
        touch copy/scans/new
        chmod -R go= copy
        rm -r copy
        cp -a $M/{SESSION} copy
        touch copy/scans/new
        rm -r copy
    """
    succeeds(as_user(sitting, demo, script))


@needs_root
@needs("datalad", "git-annex")
def test_datalad_saves_a_copy_and_annex_imports_the_mount_itself(demo, sitting):
    script = f"""
        git config --global user.name Jane
        git config --global user.email jane@example.org
        datalad --log-level error create set > log 2>&1 || {{ cat log; exit 1; }}
        cp -r $M/{DICOM} set/
        datalad --log-level error save -d set -m copied > log 2>&1 || {{ cat log; exit 1; }}
        cd set
        git -c core.quotepath=off ls-files DICOM | wc -l
        git annex fsck --quiet DICOM
        git annex initremote mount type=directory directory=$M/{DICOM} encryption=none importtree=yes > ../log 2>&1
        git annex import master:imported --from mount > ../log 2>&1 || {{ cat ../log; exit 1; }}
        git ls-tree mount/master:imported | wc -l
        git annex uninit > ../log 2>&1 || {{ cat ../log; exit 1; }}
        cd ..
        rm -rf set
        ls $M/{DICOM} | wc -l
    """
    counts = succeeds(as_user(sitting, demo, script)).split()
    assert len(set(counts)) == 1
    assert counts[0] != "0"


@needs_root
@needs("fuse-overlayfs")
def test_an_overlay_takes_the_changes_that_the_mount_does_not(demo, sitting):
    script = f"""
        mkdir upper work over
        cat > inside <<'END'
            fuse-overlayfs -o lowerdir="$M/{SESSION}",upperdir=upper,workdir=work over
            trap 'umount over' EXIT
            cd over
            first=$(find scans -type f | sort | head -n 1)
            second=$(find scans -type f | sort | sed -n 2p)
            cmp "$first" "$M/{SESSION}/$first"
            echo more >> "$first"
            cmp -n $(stat -c %s "$M/{SESSION}/$first") "$first" "$M/{SESSION}/$first"
            test $(stat -c %s "$first") -eq $(($(stat -c %s "$M/{SESSION}/$first") + 5))
            rm "$second"
            test ! -e "$second"
            test -e "$M/{SESSION}/$second"
            mkdir scans/new
            mv scans/1 scans/moved
            test -d scans/moved -a ! -e scans/1
            rm -r scans/moved
            cd ..
END
        unshare -r -m sh -ec "$(cat inside)"
        ls $M/{SESSION}/scans/1
    """
    assert succeeds(as_user(sitting, demo, script))
