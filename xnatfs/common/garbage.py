"""Keep the garbage collector's pauses short in a process that holds millions of objects.

A full collection visits every object while all other work waits: 57 ms for the rows and nodes of 40,000 sessions, 80 ms
for 200,000 listed files (measured). Survivors of a long one are exempt from the next ones, until the process has been
idle: then one collection visits everything, since an exempt cycle of objects is never released.
"""

import gc
import time

import trio

# Seconds that a collection may take before its survivors are exempt: some 60,000 objects.
LONG_COLLECTION_SECONDS = 0.02
# New objects before a collection of young ones, such collections before one of the survivors, and such ones before a
# full one, which follows at most when there are a quarter more. With 700, 10 and 5, `find` through 44,000 directories
# takes 11.8 s of processor, with these 11.5, and without any collection 10.6.
THRESHOLDS = 5000, 2, 5
# The process is idle if it has worked for less than a fiftieth of this time. One that never is collects after so many
# such times all the same.
IDLE_CHECK_SECONDS, MOST_BUSY_CHECKS = 60.0, 30
# Processor seconds of work after which everything is looked at again.
WORK_SECONDS = 5.0


async def keep_collections_short() -> None:
    """Exempt old objects from collections until cancelled."""
    thresholds = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(_exempt_survivors)
    try:
        worked = time.process_time()
        while True:
            await _idle()
            if time.process_time() - worked >= WORK_SECONDS:
                gc.unfreeze()
                gc.collect()
                worked = time.process_time()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(_exempt_survivors)
        gc.unfreeze()


_began = 0.0  # when the present collection began


def _exempt_survivors(phase: str, information: dict[str, int]) -> None:
    global _began
    if phase == "start":
        _began = time.thread_time()
    elif information["generation"] == 2 and time.thread_time() - _began > LONG_COLLECTION_SECONDS:
        gc.freeze()


async def _idle() -> None:
    """Wait until the process has been nearly idle for a while, or has been busy for too long."""
    for _ in range(MOST_BUSY_CHECKS):
        before = time.process_time()
        await trio.sleep(IDLE_CHECK_SECONDS)
        if time.process_time() - before < IDLE_CHECK_SECONDS / 50:
            return
