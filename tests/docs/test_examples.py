"""Run the examples of BIDS.md, VIEWS.md, CACHE-AND-OFFLINE.md and RELIABILITY.md as printed.

Docker is a stand-in, which runs the command on the directory that a container would have as a volume.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.docs.test_readme import ROOT, blocks, page
from tests.programs.test_bids import bids_demo
from tests.support.commanding import OWNER, PASSWORD, shell
from tests.support.demos import Demo, serving
from tests.support.mounting import SCRIPTS, end, environment, mounting, run
from xnatfs.common.files import write_private
from xnatfs.rest.bids import parse_map

DOCKER = """#!/bin/sh
set -eu
[ "$1 $2 $3 $5" = "run --rm -v IMAGE" ]
source=${4%:/data:ro}
shift 5
exec "$1" "$source${2#/data}"
"""


@contextmanager
def home_of(demo: Demo, directory: Path) -> Iterator[dict[str, str]]:
    """Provide the environment of a user whose profile `work` is the demo, with the directory ~/xnat."""
    home = directory / "home"
    (home / "xnat").mkdir(parents=True)
    login = f"username: {demo.login['user']}, password: {demo.login['password']}"
    write_private(home / ".config/xnatctl/config.yaml", f"profiles: {{work: {{url: '{demo.url}', {login}}}}}\n")
    tools = directory / "bin"
    tools.mkdir()
    (tools / "docker").write_text(DOCKER)
    (tools / "docker").chmod(0o755)
    try:
        yield environment(home, PATH=f"{tools}:{SCRIPTS}:{os.environ['PATH']}")
    finally:
        end(home / "xnat", home)


@pytest.mark.fuse
def test_a_project_is_listed_validated_and_reported_under_bids_names(tmp_path):
    (script,) = blocks("sh", page("BIDS"))
    with bids_demo() as demo, home_of(demo, tmp_path) as env:
        done = run("sh", "-e", "-c", script.replace("MYPROJECT", "BIDS_CONVERTED"), env=env)
    assert done.returncode == 0, done.stderr
    assert {"dataset_description.json", "participants.tsv", "sub-CASE001"} <= set(done.stdout.split())


def test_the_map_of_names_is_one():
    (text,) = blocks("json", page("BIDS"))
    rows = parse_map(text, "the map")
    assert [row.bidsname for row in rows] == ["acq-spgr_T1w", "task-rest_bold", "phasediff"]
    assert [row.targets for row in rows] == ["", "", "task-rest_bold"]


@pytest.mark.fuse
def test_a_container_has_the_layout_of_the_archive(tmp_path):
    (script,) = blocks("sh", page("VIEWS"))
    with serving() as demo, home_of(demo, tmp_path) as env:
        done = run("sh", "-e", "-c", script.replace("MYPROJECT", "BRAINS"), env=env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\S+\.dcm$", done.stdout, re.MULTILINE)


@pytest.mark.fuse
def test_the_attributes_of_a_conflict_are_those_printed(tmp_path):
    command, expected = blocks("console", page("VIEWS"))[0].removeprefix("$ ").split("\n", 1)
    with shell(tmp_path / "home") as scanner, httpx.Client(base_url=scanner.url, auth=("root", PASSWORD)) as http:
        first, second = scanner.receive("MR1"), scanner.receive("MR1")
        archived = [http.post("/data/services/archive", params={"src": each[5:]}) for each in (first, second)]
        assert [reply.status_code for reply in archived] == [200, 500]
        with mounting(scanner.url, tmp_path, user=OWNER, password=PASSWORD) as mount:
            here = command.replace("20240102_030405678", second.split("/")[-2])
            done = run(*shlex.split(here), cwd=mount.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected.strip().replace("20240102_030405678", second.split("/")[-2])


def test_the_directories_of_a_shared_cache_have_the_modes_that_the_page_explains(tmp_path):
    (block,) = blocks("sh", page("CACHE-AND-OFFLINE"))
    modes = []
    for number, line in enumerate(block.splitlines()):
        place = tmp_path / str(number)
        done = run("sh", "-e", "-c", line.replace("DIR", str(place)).replace("LAB", str(os.getgid())))
        assert done.returncode == 0, done.stderr
        modes.append(oct(place.stat().st_mode & 0o7777))
    assert modes == ["0o711", "0o3730"]


def test_the_tests_of_the_fault_matrix_are_where_the_page_says():
    (block,) = blocks("sh", (ROOT / "docs" / "dev" / "RELIABILITY.md").read_text())
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "python"
        done = run(sys.executable, *words[1:], "--collect-only", "-q", "-p", "no:cacheprovider", cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert "tests collected" in done.stdout
