"""Processes that are killed, and what the next mount makes of what they leave."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.killing import BIG, SERIES, Victim, victim

pytestmark = pytest.mark.fuse

KILLS = int(os.environ.get("XNATFS_KILLS", "20"))
SEED = int(os.environ.get("XNATFS_KILLS_SEED", "1"))


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Victim]:
    with victim(tmp_path) as made:
        yield made


def test_kills_at_random_moments_leave_nothing_wrong(killed):
    chance = random.Random(SEED)
    for number in range(KILLS):
        try:
            killed.kill_once(chance)
        except AssertionError as error:
            error.add_note(f"kill {number} of seed {SEED}: {dict(killed.counts)}")
            raise
    killed.mount()
    found = killed.read(*SERIES, *BIG).result()
    assert len(found["whole"]) == len(SERIES) + len(BIG)
    assert killed.umount() == ""
    killed.consistent()
    print(f"{KILLS} kills of seed {SEED}: {dict(killed.counts)}")
