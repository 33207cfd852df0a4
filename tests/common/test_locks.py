"""Stop processes that hold a lock: waiting programs go on without it within `--timeout`, and report that once.

The limits are in real time, because the processes are real: several times what the timeout allows, and far less than
SQLite's 20 seconds, let alone for ever.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.support.commanding import OWNER, PASSWORD, SESSION
from tests.support.content_fakes import BIG, LIMIT, SMALL, FakeSource, read_all, until, version
from tests.support.demos import serving
from tests.support.holding import FLOCK, TRANSACTION, stopped, wake
from tests.support.mounting import SCRIPTS, environment, mounting, run
from xnatfs.cli.ctl.main import RETRY_SECONDS
from xnatfs.common.errors import ConfigError, Conflict, MountpointError
from xnatfs.common.locks import holder
from xnatfs.common.mountinfo import file_system
from xnatfs.content import open_cache
from xnatfs.fuse.mountpoint import one_at_a_time
from xnatfs.listings.background_store import ListingStore
from xnatfs.listings.keys import ProjectsKey
from xnatfs.rest.models import Project
from xnatfs.settings.cache_location import cache_directory
from xnatfs.settings.config import Config, server_directory
from xnatfs.settings.profile_file import add_profile
from xnatfs.settings.session_store import SessionStore
from xnatfs.transfer import manifest

TIMEOUT = 2.0
# What is waited for a lock of a mount with this timeout, and then everything that a mount or a command does.
SOON = 5 * TIMEOUT
WAIT = 0.2  # where a test itself says how long a lock may be waited for
URL = "https://xnat.example.org"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "xnatfs.common.locks"]


def test_a_config_leaves_half_of_its_timeout_for_going_on():
    assert Config(URL).lock_timeout == 30
    assert Config(URL, timeout=TIMEOUT).lock_timeout == TIMEOUT / 2
    assert Config(URL, timeout=21600, retry_budget=RETRY_SECONDS).lock_timeout == RETRY_SECONDS


def test_the_holder_is_named(tmp_path):
    assert str(holder(tmp_path)) == "another process"
    with stopped(FLOCK, tmp_path / "lock") as process:
        text = str(holder(tmp_path / "lock"))
        assert text.startswith(f"process {process.pid} (")
        assert text.endswith(", which is stopped)")
        assert not holder(tmp_path).process


# -- the cache ---------------------------------------------------------------------------------------------------------


async def test_a_stopped_transaction_costs_one_wait_and_no_file(tmp_path, caplog):
    """Fetch what cannot be cached; when the process goes on, its transaction counts, and files are cached again."""
    files = [version(BIG, f"34/{number}") for number in range(4)]
    async with open_cache(tmp_path, LIMIT, wait=WAIT) as cache:
        await cache.tidied.wait()
        with stopped(TRANSACTION, tmp_path / "index.sqlite") as process:
            with within(WAIT + SOON):
                for each in files[:3]:
                    assert await read_all(cache, each, FakeSource(BIG)) == BIG
            (text,) = reports(caplog)
            assert f": locked by process {process.pid}" in text
            assert text.endswith("files are fetched but not kept")
            wake(process)
            await read_all(cache, files[3], FakeSource(BIG))
            await until(lambda: not cache.counters()["fills"])
            assert cache.has(files[3])
    assert len(reports(caplog)) == 1
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as index:
        assert index.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert index.execute("SELECT count(*) FROM begun_by_another").fetchone() == (0,)


async def test_a_cache_is_opened_in_the_middle_of_a_stopped_transaction(tmp_path, caplog):
    """Serve what is cached; when the process goes on, files are cached as well."""
    old, new = version(SMALL, "34/old"), version(SMALL, "34/new")
    async with open_cache(tmp_path, LIMIT) as cache:
        await read_all(cache, old, FakeSource(SMALL))
    with stopped(TRANSACTION, tmp_path / "index.sqlite") as process:
        with within(WAIT + SOON):
            async with open_cache(tmp_path, LIMIT, wait=WAIT) as cache:
                assert cache.has(old)
                await cache.tidied.wait()
                wake(process)
                await read_all(cache, new, FakeSource(SMALL))
                await until(lambda: cache.has(new))
    assert len(reports(caplog)) == 1


async def test_a_cache_that_cannot_be_opened_is_replaced_for_this_process(tmp_path, caplog):
    directory = tmp_path / "cache"
    async with open_cache(directory, LIMIT):
        pass
    before = sorted(directory.iterdir())
    with stopped(FLOCK, directory):
        with within(WAIT + SOON):
            async with open_cache(directory, LIMIT, wait=WAIT) as cache:
                for _ in range(2):
                    assert await read_all(cache, version(SMALL), FakeSource(SMALL)) == SMALL
                    await until(lambda: not cache.counters()["fills"])
                assert cache.stats.misses == 1
                elsewhere = cache._store._directory.directory
        assert not elsewhere.exists()
        assert len(reports(caplog)) == 1
    assert set(before) <= set(directory.iterdir())
    async with open_cache(directory, LIMIT) as cache:
        await cache.tidied.wait()
        assert not cache.has(version(SMALL))


async def test_a_cache_is_closed_though_its_directory_is_locked(tmp_path):
    with within(WAIT + SOON):
        async with open_cache(tmp_path, LIMIT, wait=WAIT) as cache:
            await cache.tidied.wait()
            holding = stopped(FLOCK, tmp_path)
            holding.__enter__()
    holding.__exit__(None, None, None)
    async with open_cache(tmp_path, LIMIT):
        pass


async def test_an_index_is_not_made_anew_while_the_directory_is_locked(tmp_path, caplog):
    async with open_cache(tmp_path, LIMIT, wait=WAIT) as cache:
        await cache.tidied.wait()
        with stopped(FLOCK, tmp_path):
            (tmp_path / "index.sqlite").unlink()
            with within(WAIT + SOON):
                for number in range(3):
                    assert await read_all(cache, version(BIG, f"34/{number}"), FakeSource(BIG)) == BIG
            assert not (tmp_path / "index.sqlite").exists()
            assert len(reports(caplog)) == 1


async def test_kept_listings_wait_once(tmp_path):
    kept = ListingStore(tmp_path, lambda: "alice")
    rows = [Project("P", "P", "")]
    kept.put(ProjectsKey(), rows)
    await kept.flush()
    with stopped(TRANSACTION.replace("IMMEDIATE", "EXCLUSIVE"), kept.path):
        with within(SOON):
            for _ in range(60):
                assert await kept.find(ProjectsKey(), Project) is None
    kept.close()
    kept = ListingStore(tmp_path, lambda: "alice")
    found = await kept.find(ProjectsKey(), Project)
    assert found is not None
    assert found[1] == rows
    kept.close()


# -- sessions, profiles, mountpoints, folders --------------------------------------------------------------------------


async def test_a_login_does_not_wait_for_a_stopped_one(tmp_path, caplog, patient_clock: MockClock):
    store = SessionStore(URL, "alice", tmp_path, lock_timeout=60)
    with stopped(FLOCK, tmp_path / ".config" / "xnatfs" / "sessions" / "lock"):
        began = trio.current_time()
        async with store.locked():
            assert 60 <= trio.current_time() - began < 61
            store.save("A" * 32, 900)
        (text,) = reports(caplog)
        assert text.endswith("which is stopped): logging in anyway")
    found = SessionStore(URL, "alice", tmp_path).find()
    assert found is not None
    assert found.token == "A" * 32


def test_a_change_of_the_profiles_is_not_made_beside_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.settings.profile_file.EDIT_LOCK_SECONDS", WAIT)
    path = tmp_path / "config.yaml"
    with stopped(FLOCK, tmp_path / ".config.lock"):
        with within(WAIT + SOON), pytest.raises(ConfigError, match=r"is being changed by process \d+ .*stopped"):
            add_profile("a", {"url": URL}, path=path)
    assert not path.exists()
    add_profile("a", {"url": URL}, path=path)


async def test_one_mountpoint_at_a_time(tmp_path, monkeypatch, patient_clock: MockClock):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    async with one_at_a_time(Path("/mnt/a"), 60):
        pass
    (path,) = (tmp_path / "xnatfs" / "mounts").iterdir()
    with stopped(FLOCK, path):
        with pytest.raises(MountpointError, match=r"/mnt/a is being mounted on by process \d+ .*stopped"):
            async with one_at_a_time(Path("/mnt/a"), 60):
                pass
        async with one_at_a_time(Path("/mnt/b"), 60):
            assert trio.current_time() < patient_clock.current_time() + 1


async def test_a_folder_of_a_stopped_command_is_not_waited_for(tmp_path, patient_clock: MockClock):
    waits: list[int] = []
    with stopped(FLOCK, tmp_path / "out" / manifest.FOLDER / "lock"):
        with pytest.raises(Conflict, match=r"out is locked by process \d+ .*stopped"):
            async with manifest.opened(tmp_path / "out", lambda: waits.append(1)):
                pass
    assert waits == [1]


# -- a mount, and xnatctl ----------------------------------------------------------------------------------------------


def places(home: Path, url: str) -> dict[str, tuple[str, Path]]:
    """Return every lock that a mount or a command may meet, and how it is held."""
    cache = home / ".cache" / "xnatfs" / server_directory(url)
    return {
        "index": (TRANSACTION, cache / "index.sqlite"),
        "directory": (FLOCK, cache),
        "sessions": (FLOCK, home / ".config" / "xnatfs" / "sessions" / "lock"),
    }


@pytest.mark.parametrize("name", ["index", "directory", "sessions"])
def test_a_mount_begins_and_reads(tmp_path, name):
    home = tmp_path / "home"
    with serving() as demo:
        with mounting(demo.url, tmp_path, **demo.login):
            pass  # there is a cache
        for path in (home / ".config").rglob("*.json"):
            path.unlink()  # and no session
        (home / ".config" / "xnatctl" / ".session").unlink()
        code, path = places(home, demo.url)[name]
        entry = next(each for each in demo.manifest if each.path[0] == "projects" and each.size > 1000)
        with stopped(code, path):
            with within(SOON), mounting(demo.url, tmp_path, "--timeout", str(TIMEOUT), **demo.login) as mount:
                mount.expected_in_log.append("locked by process")
                assert mount.path.joinpath(*entry.path).stat().st_size == entry.size
                assert len(mount.path.joinpath(*entry.path).read_bytes()) == entry.size
            lines = [line for line in mount.log_file.read_text().splitlines() if " locked by process" in line]
            assert len(lines) == 1
            assert "WARNING xnatfs.common.locks:" in lines[0]


def test_a_mount_that_is_there_reads_on(tmp_path):
    with serving() as demo, mounting(demo.url, tmp_path, "--timeout", str(TIMEOUT), **demo.login) as mount:
        mount.expected_in_log.append("files are fetched but not kept")
        big = [each for each in demo.manifest if each.path[0] == "projects" and each.size > 10**7]
        assert len(big) > 1
        code, path = places(mount.home, demo.url)["index"]
        with stopped(code, path):
            with within(SOON):
                for entry in big:
                    assert len(mount.path.joinpath(*entry.path).read_bytes()) == entry.size
        assert mount.log_file.read_text().count("files are fetched but not kept") == 1


@pytest.mark.parametrize("name", ["index", "directory", "sessions"])
def test_a_command_ends_and_says_so_once(fresh, name):
    """Use the timeout of a profile as commands use --timeout."""
    fresh.config(f"default_profile: p\nprofiles:\n  p: {{url: '{fresh.url}', timeout: {TIMEOUT}}}\n")
    fresh.env |= {"XNAT_USER": OWNER, "XNAT_PASS": PASSWORD, "XNAT_URL": ""}
    download = ("session", "download", "-E", SESSION, "--out")
    fresh.ctl(*download, "before")
    if name == "sessions":
        fresh.ctl("auth", "logout")
    code, path = places(fresh.home, fresh.url)[name]
    with stopped(code, path):
        with within(SOON):
            done = fresh.ctl(*download, "after")
    assert sum(" locked by process" in line for line in done.err.splitlines()) == 1
    assert done.err.startswith("xnatctl: ")
    before, after = (
        sorted(p.read_bytes() for p in (fresh.home / o / SESSION).rglob("*.dcm")) for o in ("before", "after")
    )
    assert before == after
    assert len(after) == 15


# -- file systems that several hosts share -----------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the home on a file server; /var/tmp is elsewhere."""
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setattr(
        "xnatfs.settings.cache_location.file_system", lambda path: "nfs4" if path.is_relative_to(home) else "ext4"
    )
    monkeypatch.setattr("xnatfs.settings.cache_location.LOCAL_CACHE_PARENT", str(tmp_path))
    return home


def test_the_cache_of_a_home_on_a_file_server_is_on_this_machine(network, tmp_path):
    local = cache_directory()
    assert local.parent == tmp_path
    assert local.stat().st_mode & 0o777 == 0o700
    assert cache_directory() == local
    assert cache_directory(tmp_path / "other") == tmp_path / "other"
    (note,) = (network / ".cache" / "xnatfs" / "local").iterdir()
    assert note.read_text() == str(local)


@pytest.mark.parametrize("other", ["open to others", "a link", "gone", "no path"])
def test_a_noted_directory_that_is_not_ours_alone_is_not_used(network, tmp_path, other, monkeypatch):
    local = cache_directory()
    (note,) = (network / ".cache" / "xnatfs" / "local").iterdir()
    if other == "open to others":
        local.chmod(0o755)
    elif other == "no path":
        note.write_text("\0")
    else:
        local.rmdir()
        if other == "a link":
            local.symlink_to(tmp_path)
    anew = cache_directory()
    assert anew != local
    assert cache_directory() == anew
    anew.rmdir()
    monkeypatch.setattr("xnatfs.settings.cache_location.LOCAL_CACHE_PARENT", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="No such file or directory.*: set XDG_CACHE_HOME, or --cache-dir"):
        cache_directory()


def test_a_home_that_takes_no_note_leaves_no_directory_behind(network, tmp_path):
    """Else each command on such a home would leave one."""
    network.mkdir()
    (network / ".cache").write_text("in the way of a directory")
    with pytest.raises(ConfigError, match="no cache can be made"):
        cache_directory()
    assert list(tmp_path.glob("xnatfs-*")) == []


def test_a_cache_directory_on_a_file_server_is_refused(network):
    with pytest.raises(ConfigError, match=r"\(nfs4\).*choose one on this machine with --cache-dir"):
        cache_directory(network / "cache")


def test_the_file_system_of_a_path_is_that_of_the_mount_that_shows(tmp_path):
    assert file_system(Path("/proc/self/status")) == "proc"
    assert file_system(Path("/dev/shm/not/there")) in ("tmpfs", file_system(Path("/dev")))
    with serving() as demo, mounting(demo.url, tmp_path, **demo.login) as mount:
        assert file_system(mount.path / "not" / "there") == "fuse.xnatfs"
        assert file_system(tmp_path) != "fuse.xnatfs"
        (tmp_path / "link").symlink_to(mount.path)
        done = run(
            SCRIPTS / "xnatfs",
            *("mount", "--url", demo.url, "--cache-dir", tmp_path / "link" / "cache", tmp_path),
            env=environment(mount.home),
        )
        assert done.returncode == 2
        assert "is on a network file system (fuse.xnatfs)" in done.stderr
