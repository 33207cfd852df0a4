"""Mount every view of one project of the demo, and look at them with real programs."""

import json
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.demos import Demo
from tests.support.mounting import SCRIPTS, Mount, environment, mounting, run
from tests.support.walk import MADE

pytestmark = pytest.mark.fuse

PROJECT = "BRAINS"
SESSION = f"projects/{PROJECT}/SUB001/SUB001_MR1"
ARCHIVED = f"archive/projects/{PROJECT}/experiments/SUB001_MR1"


@pytest.fixture(scope="module")
def mount(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    options = ("--view", "all", "-o", f"projects={PROJECT}")
    with mounting(demo.url, tmp_path_factory.mktemp("views"), *options, **demo.login) as made:
        made.expected_in_log += demo.planted_warnings
        yield made


def test_names_cost_no_request_and_the_first_look_at_a_document_one(demo, mount):
    """This test comes first: nothing below the session is known yet."""
    os.listdir(mount.path / SESSION / "..")
    demo.forget_requests()
    found = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(mount.path / SESSION)}
    assert {name for name, is_file in found.items() if is_file} == {"session.json", "scans.tsv", "session.xml"}
    run("find", mount.path / SESSION, "-maxdepth", "1", "-type", "f")
    assert demo.asked() == []
    document = mount.path / SESSION / "session.xml"
    length = document.stat().st_size
    assert len(document.read_bytes()) == length > 0
    assert demo.asked() == [line for line in demo.asked() if re.fullmatch(r"GET /data/experiments/\w+", line)]
    assert len(demo.asked()) == 1


def made_files(mount: Mount) -> list[Path]:
    found = [Path(line) for line in run("find", mount.path / "projects", "-type", "f").stdout.splitlines()]
    return [path for path in found if path.name in MADE]


def test_sizes_are_right_before_a_file_is_read_and_however_it_is(mount, tmp_path):
    paths = made_files(mount)
    assert {path.name for path in paths} == MADE
    for path in paths:
        length = path.stat().st_size
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert len(mapped) == length == len(path.read_bytes())
        shutil.copyfile(path, tmp_path / "copy")  # by sendfile(2), which asks for no length
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def test_a_description_tells_what_the_directories_show(mount):
    found = json.loads((mount.path / SESSION / "session.json").read_text())
    scans = {scan["id"]: {row["label"]: row["files"] for row in scan["resources"]} for scan in found["scans"]}
    assert sorted(scans) == sorted(os.listdir(mount.path / SESSION / "scans"))
    for scan, resources in scans.items():
        for label, files in resources.items():
            shown = run("find", mount.path / SESSION / "scans" / scan / label, "-type", "f").stdout.splitlines()
            assert len(shown) == files


def sizes(mount: Mount, *places: str) -> dict[str, int]:
    done = run("du", "-ab0", *places, cwd=mount.path)
    return {path: int(size) for size, _, path in (line.partition("\t") for line in done.stdout.split("\0")) if path}


def test_the_bytes_of_the_whole_mount_are_counted_once(mount):
    mount.walk()  # the links that it finds are all there from then on
    whole, projects = sizes(mount, "."), sizes(mount, "projects")
    entries = {entry["inode"]: entry for entry in mount.walk(made=True) if entry["kind"] != "dir"}
    lengths = {
        kind: sum(size(entry) for entry in entries.values() if entry["kind"] == kind) for kind in ("file", "link")
    }
    assert whole["."] == lengths["file"] + lengths["link"]
    made = [e for e in entries.values() if e["path"][0] not in ("projects", "archive") and e["kind"] == "file"]
    assert projects["projects"] == lengths["file"] - sum(map(size, made))  # it has the whole archive


def size(entry: dict[str, Any]) -> int:
    return int(entry["size"]) if entry["kind"] == "file" else len(entry["target"].encode())


def test_both_names_of_a_file_are_one_inode(mount):
    folder = mount.path / SESSION / "scans" / "1" / "DICOM"
    other = mount.path / ARCHIVED / "SCANS" / "1" / "DICOM"
    assert sorted(os.listdir(folder)) == sorted(os.listdir(other)) != []
    for name in os.listdir(folder):
        one, two = os.stat(folder / name), os.stat(other / name)
        assert (one.st_ino, one.st_nlink) == (two.st_ino, two.st_nlink)
        assert one.st_nlink == 3
        assert (folder / name).read_bytes() == (other / name).read_bytes()


COPYING = {
    "cp -a": lambda source, target: ["cp", "-a", source / "projects", source / "archive", target],
    "rsync -aH": lambda source, target: ["rsync", "-aH", source / "projects", source / "archive", target],
    "tar": lambda source, target: ["sh", "-c", f"tar -C {source} -cf - projects archive | tar -C {target} -xf -"],
}


@pytest.mark.parametrize("program", COPYING)
def test_programs_that_know_hard_links_copy_each_file_once(mount, tmp_path, program):
    run(*COPYING[program](mount.path, tmp_path))
    one = tmp_path / SESSION / "scans" / "1" / "DICOM"
    two = tmp_path / ARCHIVED / "SCANS" / "1" / "DICOM"
    assert sorted(os.listdir(one)) == sorted(os.listdir(mount.path / SESSION / "scans" / "1" / "DICOM"))
    for name in os.listdir(one):
        assert os.stat(one / name).st_ino == os.stat(two / name).st_ino
        assert (one / name).read_bytes() == (mount.path / SESSION / "scans" / "1" / "DICOM" / name).read_bytes()


def test_a_walk_that_follows_links_ends(mount):
    """Links lead into projects/, where there are none: `find -L` meets a directory twice, and none within itself."""
    done = run("find", "-L", mount.path / "experiments", mount.path / "projects", "-maxdepth", "12", "-name", "NOSUCH")
    assert "loop" not in done.stderr
    assert run("find", mount.path / "projects", mount.path / "archive", "-type", "l").stdout == ""


def test_only_the_chosen_project_is_there(mount):
    assert os.listdir(mount.path / "projects") == os.listdir(mount.path / "archive" / "projects") == [PROJECT]
    targets = {os.readlink(path).split("/")[2] for path in (mount.path / "experiments").iterdir()}
    assert targets == {PROJECT}


def test_a_change_on_the_server_is_another_size_after_a_refresh(demo, mount):
    path = mount.path / SESSION / "scans.tsv"
    before, dated = path.read_bytes(), path.stat().st_mtime_ns
    session = next(each for each in demo.archive.experiments.values() if each.label == "SUB001_MR1")
    session.scans[0].note = "=1+1\nsecond line"
    try:
        assert path.read_bytes() == before
        done = run(SCRIPTS / "xnatfs", "refresh", mount.path / SESSION, env=environment(mount.home))
        assert done.returncode == 0, done.stderr
        after = path.read_bytes()
        assert after != before
        assert b'"=1+1\nsecond line"' in after
        assert path.stat().st_size == len(after)
        assert path.stat().st_mtime_ns != dated
    finally:
        session.scans[0].note = ""
