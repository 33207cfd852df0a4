"""Test that old objects are exempt from collections of garbage, and are released in the end all the same."""

import gc
import time
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from xnatfs.common import garbage


class Cycle:
    """An object that only the collector releases."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def long_collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take every full collection for a long one."""
    monkeypatch.setattr(garbage, "LONG_COLLECTION_SECONDS", -1.0)
    yield
    gc.unfreeze()


async def test_survivors_of_a_long_collection_are_exempt(long_collections, nursery):
    nursery.start_soon(garbage.keep_collections_short)
    await trio.testing.wait_all_tasks_blocked()
    gc.collect(1)
    assert gc.get_freeze_count() == 0  # it was no full one
    cycle = Cycle()
    released = weakref.ref(cycle)
    gc.collect()
    assert gc.get_freeze_count() > 0
    del cycle
    gc.collect()
    assert released() is not None


async def test_survivors_of_a_short_collection_are_not(monkeypatch, nursery):
    monkeypatch.setattr(garbage, "LONG_COLLECTION_SECONDS", 1000.0)
    nursery.start_soon(garbage.keep_collections_short)
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("is_busy", [False, True])
async def test_everything_is_looked_at_once_the_process_is_idle_or_has_not_been_for_long(monkeypatch, nursery, is_busy):
    monkeypatch.setattr(garbage, "WORK_SECONDS", 0.0)
    monkeypatch.setattr(garbage, "IDLE_CHECK_SECONDS", 0.01)
    worked = iter(range(10_000))
    monkeypatch.setattr(time, "process_time", (lambda: next(worked)) if is_busy else (lambda: 1.0))
    cycle, released = Cycle(), trio.Event()
    # Threads that earlier tests have left may collect, too, and an event is set by trio's own thread only.
    weakref.finalize(cycle, trio.lowlevel.current_trio_token().run_sync_soon, released.set)
    gc.collect()
    gc.freeze()
    del cycle
    nursery.start_soon(garbage.keep_collections_short)
    with trio.fail_after(30):
        await released.wait()


async def test_the_collector_is_left_as_it_was():
    before = gc.get_threshold(), list(gc.callbacks)
    with trio.move_on_after(0.01):
        await garbage.keep_collections_short()
    assert (gc.get_threshold(), gc.callbacks, gc.get_freeze_count()) == (*before, 0)
