"""The commands' frame: the foreground, help and versions. What they say of mistakes is in test_wrong_inputs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failing import DEAD, Desk, Page, Refusing, desk, serving
from tests.mounting import SCRIPTS, environment, run


@pytest.fixture
def sitting() -> Iterator[Desk]:
    with desk() as made:
        yield made


@pytest.mark.fuse
def test_the_foreground_ends_as_the_background_does(sitting):
    for options in ([], ["--foreground"]):
        line = sitting.fails(4, "mount", *options, "--url", DEAD, sitting.place)
        assert "cannot be reached: Connection refused" in line
        with serving(Refusing) as url:
            line = sitting.fails(3, "mount", *options, "--url", url, sitting.place)
        assert "wrong user or password, a locked account, or too many sessions" in line


@pytest.mark.fuse
def test_a_refused_login_is_not_tried_again(sitting):
    Refusing.asked = 0
    with serving(Refusing) as url:
        sitting.fails(3, "mount", "--url", url, sitting.place)
    assert Refusing.asked == 1


@pytest.mark.fuse
def test_the_demo_is_as_careful_with_mountpoints(sitting):
    file, full = sitting.root / "file", sitting.root / "full"
    file.write_text("")
    (full / "something").mkdir(parents=True)
    assert "is not a directory" in sitting.fails(66, "demo", file)
    assert "is not empty" in sitting.fails(66, "demo", full)
    assert "is a mountpoint already" in sitting.fails(66, "demo", "/proc")


@pytest.mark.fuse
def test_a_cache_directory_that_cannot_be_used_is_named(sitting):
    (sitting.root / "file").write_text("")
    with serving(Page) as url:
        cache = sitting.root / "file" / "cache"
        assert str(cache) in sitting.fails(73, "mount", "--url", url, "--cache-dir", cache, sitting.place)


@pytest.mark.parametrize("program", ["xnatfs", "xnatctl"])
def test_versions_and_help(tmp_path: Path, program):
    env = environment(tmp_path)
    assert run(SCRIPTS / program, "--version", env=env).stdout.startswith(f"{program} 0.")
    assert "usage:" in run(SCRIPTS / program, "--help", env=env).stdout
