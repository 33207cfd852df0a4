"""Test that bids/ of a mount shows what the server has now after a refresh."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.control.test_refresh import RefreshedMount
from tests.support.commanding import LABEL, OWNER, PASSWORD, SESSION, page_archive
from tests.support.mounting import SCRIPTS, Mount, environment, mounting, run
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve

pytestmark = pytest.mark.fuse

PROJECT = "bids/MYPROJECT"
ANAT = f"{PROJECT}/sub-SUB001/ses-{LABEL.replace('_', '')}/anat"
NAME = f"sub-SUB001_ses-{LABEL.replace('_', '')}_acq-one_T1w.nii.gz"


class AddressedMount(RefreshedMount):
    """A refreshed mount with the address of its server."""

    def __init__(self, app: DemoXnat, mount: Mount, url: str) -> None:
        super().__init__(app, mount)
        self.url = url


def put_map(world: RefreshedMount, name: str) -> None:
    text = json.dumps([{"series_description": "series 1", "bidsname": name}])
    with world.archive.lock:
        world.archive.configurations.put("bids", "bidsmap", text, project="MYPROJECT")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AddressedMount]:
    app = DemoXnat(page_archive())
    with serve(app) as url, mounting(url, tmp_path, "--ttl", "3600", user=OWNER, password=PASSWORD) as mount:
        made = AddressedMount(app, mount, url)
        put_map(made, "acq-one_T1w")
        yield made


def test_a_new_map_and_a_new_subject_are_seen(world):
    image = world.mount.path / ANAT / NAME
    assert image.read_bytes() == bytes(range(256)) * 8
    same = world.mount.path / "projects/MYPROJECT/SUB001" / LABEL / "scans/1/NIFTI/image.nii.gz"
    assert image.samefile(same)
    assert image.stat().st_nlink == 2
    put_map(world, "acq-two_T1w")
    with world.archive.lock:
        session = world.archive.experiments["XNAT_E00003"]  # of the second subject, which has none so far
        scan = world.archive.scan(session, "1", series_description="series 1")
        nifti = world.archive.resource(scan.resources, "NIFTI", "NIFTI")
        world.archive.file(nifti, "image.nii.gz", b"second")
    assert "sub-SUB002" not in world.names(PROJECT)
    world.refresh(PROJECT)
    assert "sub-SUB002" in world.names(PROJECT)
    assert world.names(ANAT) == {NAME.replace("one", "two")}
    assert not image.exists()


def test_what_xnatctl_changes_is_seen(world):
    assert world.names(ANAT) == {NAME}
    name = world.mount.home / "image.json"
    name.write_text('{"a": 1}')
    env = environment(world.mount.home, XNAT_URL=world.url, XNAT_USER=OWNER, XNAT_PASS=PASSWORD)
    words = ("resource", "upload", "-E", SESSION, "--scan", "1", "NIFTI", str(name))
    done = run(SCRIPTS / "xnatctl", *words, env=env)
    assert done.returncode == 0, done.stderr
    assert world.names(ANAT) == {NAME, NAME.replace(".nii.gz", ".json")}
