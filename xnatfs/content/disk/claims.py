"""Let one process of a machine fetch a file for all of them: claims by name, as locks beside the downloads.

A claim only saves requests. A process that cannot claim a name, or waits in vain, fetches without a claim. The claim of
a process that has ended is free, and its file is removed with its downloads (`CacheDirectory.tidy_partials`).
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import trio

from xnatfs.common.locks import holder, lock

# Seconds between looks at a claim of another process: a request to a server takes as long.
CLAIM_POLL_SECONDS = 0.02
# The longest wait for another process, in seconds: half of what a mount's call waits for by default, so that there is
# time for a request of its own. A process that has ended holds no claim, and one that is stopped is not waited for.
CLAIM_WAIT_SECONDS = 30.0
# Looks at a claim between two at its holder, which costs a look at all locks of the machine.
LOOKS_PER_HOLDER_CHECK = 25
# The suffix of a claim's file.
CLAIM_SUFFIX = ".claim"
# In place of the descriptor of a claim that cannot be made.
NO_CLAIM = -1


class Claims:
    """The claims in one cache directory.

    Args:
        directory: The directory of its downloads.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @asynccontextmanager
    async def turn(self, name: str, is_done: Callable[[], bool]) -> AsyncIterator[bool]:
        """Claim a name for the context, once no other process has claimed it; yield whether one had.

        Wait no longer than until `is_done`, which is called at each look, or for CLAIM_WAIT_SECONDS; then the context
        has no claim.
        """
        path = self._directory / (name + CLAIM_SUFFIX)
        claim = self._take(path)
        waited = claim is None
        with trio.move_on_after(CLAIM_WAIT_SECONDS):
            for look in count(1):
                if claim is not None or is_done() or not look % LOOKS_PER_HOLDER_CHECK and holder(path).is_stopped:
                    break
                await trio.sleep(CLAIM_POLL_SECONDS)
                claim = self._take(path)
        try:
            yield waited
        finally:
            if claim is not None and claim != NO_CLAIM:
                with suppress(OSError):
                    os.unlink(path)
                os.close(claim)

    def names(self) -> set[str]:
        """Return the names that are claimed, by any process; a claim of one that has ended may be among them."""
        with suppress(OSError):
            return {
                name.removesuffix(CLAIM_SUFFIX) for name in os.listdir(self._directory) if name.endswith(CLAIM_SUFFIX)
            }
        return set()

    def _take(self, path: Path) -> int | None:
        """Return the descriptor that holds the claim, None if another process has it, NO_CLAIM if it cannot be made."""
        while True:
            try:
                claim = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError:
                return NO_CLAIM
            if not lock(claim):
                os.close(claim)
                return None
            if os.fstat(claim).st_nlink:  # else its last holder has removed it in between
                return claim
            os.close(claim)
