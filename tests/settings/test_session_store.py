"""Test the session that all programs share: what is saved, what is found, what breaks no other program."""

import json
import os
import stat
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from xnatfs.settings.session_store import SessionStore

URL = "https://xnat.example.org"
START = datetime(2026, 11, 23, 6, 14, 58, 273364)


class Clock:
    def __init__(self) -> None:
        self.now = START.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> SessionStore:
    return SessionStore(URL, "alice", tmp_path, clock)


def slot(home: Path) -> Path:
    return home / ".config" / "xnatctl" / ".session"


def token(store: SessionStore, *dead: str) -> str:
    found = store.find(frozenset(dead))
    return found.token if found else ""


def test_the_shared_slot_has_the_seven_fields_that_the_other_program_knows(tmp_path, store):
    store.save("A" * 32, 900)
    assert json.loads(slot(tmp_path).read_text()) == {
        "version": 1,
        "token": "A" * 32,
        "url": URL,
        "username": "alice",
        "created_at": START.isoformat(),
        "expires_at": (START + timedelta(minutes=15)).isoformat(),
        "last_used_at": START.isoformat(),
    }


def test_files_and_directories_are_private_whatever_the_umask(tmp_path, store):
    before = os.umask(0)
    try:
        store.save("A" * 32, 900)
    finally:
        os.umask(before)
    kept = list((tmp_path / ".config").rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_dir()} == {0o700}
    assert not [path for path in kept if path.name.startswith("..session")]  # no draft is left


def test_a_session_is_found_again_until_it_has_idled_too_long(store, clock):
    store.save("A" * 32, 900)
    for _ in range(5):
        clock.now += 14 * 60
        assert token(store) == "A" * 32
        store.record_use("A" * 32, 900)
    clock.now += 16 * 60
    assert token(store) == ""


def test_the_time_of_use_is_written_once_a_minute_at_most(tmp_path, store, clock):
    store.save("A" * 32, 900)
    clock.now += 100
    store.record_use("A" * 32, 900)
    written = slot(tmp_path).read_text()
    clock.now += 59
    store.record_use("A" * 32, 900)
    assert slot(tmp_path).read_text() == written


def test_the_other_programs_session_is_taken_and_what_we_replace_it_by_is_left_for_it(tmp_path, store):
    slot(tmp_path).parent.mkdir(parents=True)
    old = {"token": "B" * 32, "url": URL + "/", "username": "alice", "created_at": START.isoformat()}
    slot(tmp_path).write_text(json.dumps({**old, "expires_at": (START + timedelta(minutes=15)).isoformat()}))
    assert token(store) == "B" * 32
    assert token(store, "B" * 32) == ""
    store.save("C" * 32, 900)
    assert json.loads(slot(tmp_path).read_text())["token"] == "C" * 32


def test_a_slot_of_another_server_or_user_is_not_ours_and_stays(tmp_path, clock):
    other = SessionStore("https://other.example.org", "alice", tmp_path, clock)
    other.save("D" * 32, 900)
    before = slot(tmp_path).read_text()
    for store in (SessionStore(URL, "alice", tmp_path, clock), SessionStore(other.url, "bob", tmp_path, clock)):
        assert token(store) == ""
        store.forget("D" * 32 + "x")
    assert slot(tmp_path).read_text() == before


def test_two_logins_keep_their_sessions_side_by_side(tmp_path, clock):
    stores = [SessionStore(url, "alice", tmp_path, clock) for url in (URL, "https://other.example.org")]
    for letter, store in zip("AB", stores, strict=True):
        store.save(letter * 32, 900)
    assert [token(store) for store in stores] == ["A" * 32, "B" * 32]


def test_with_no_user_named_anybodys_session_on_this_server_is_found(tmp_path, store, clock):
    store.save("A" * 32, 900)
    assert token(SessionStore(URL, "", tmp_path, clock)) == "A" * 32


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "null", '{"token": 1}', '{"version": 2, "token": "A", "url": "u", "created_at": "2026-01-01"}'],
)
def test_a_file_that_makes_no_sense_is_no_session_and_no_error(tmp_path, store, text):
    slot(tmp_path).parent.mkdir(parents=True)
    slot(tmp_path).write_text(text)
    assert token(store) == ""


def test_times_with_a_zone_are_understood(tmp_path, store):
    slot(tmp_path).parent.mkdir(parents=True)
    cells = {"token": "B" * 32, "url": URL, "username": "alice", "created_at": START.isoformat() + "+00:00"}
    slot(tmp_path).write_text(json.dumps({**cells, "expires_at": None}))
    assert token(store) == "B" * 32


async def test_who_waits_for_the_lock_gets_it_after_the_other(tmp_path, clock):
    stores = [SessionStore(URL, "alice", tmp_path, clock) for _ in range(2)]
    order: list[str] = []

    async def second() -> None:
        async with stores[1].locked():
            order.append("second")

    async with trio.open_nursery() as nursery:
        async with stores[0].locked():
            nursery.start_soon(second)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            order.append("first")
    assert order == ["first", "second"]


def test_logging_out_removes_what_is_of_this_session_alone(tmp_path, clock):
    first, second = (SessionStore(URL, user, tmp_path, clock) for user in ("alice", "bob"))
    first.save("A" * 32, 900)
    second.save("B" * 32, 900)
    second.forget("B" * 32)
    assert (token(first), token(second)) == ("A" * 32, "")
    assert not slot(tmp_path).exists()


@pytest.mark.parametrize("spelled", [f"{URL}/", "HTTPS://XNAT.example.org", f"{URL}:443"])
def test_a_server_is_the_same_however_it_is_spelled(tmp_path, clock, spelled):
    SessionStore(spelled, "alice", tmp_path, clock).save("A" * 32, 900)
    assert token(SessionStore(URL, "alice", tmp_path, clock)) == "A" * 32
    assert token(SessionStore(f"{URL}/path", "alice", tmp_path, clock)) == ""
    assert json.loads(slot(tmp_path).read_text())["url"] == spelled


def test_a_session_that_has_ended_is_found_where_it_is_wanted(store, clock):
    store.save("A" * 32, 900)
    clock.now += 1000
    assert store.find() is None
    found = store.find(ended=True)
    assert found is not None
    assert (found.token, found.username) == ("A" * 32, "alice")
