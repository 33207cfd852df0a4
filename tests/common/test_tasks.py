"""Test what runs beside the event loop."""

import threading

from xnatfs.common.tasks import MOST_ROWS_IN_LOOP, run_in_thread_if_large


async def test_work_on_many_rows_runs_in_a_thread():
    here = threading.current_thread()
    assert await run_in_thread_if_large(MOST_ROWS_IN_LOOP, threading.current_thread) is here
    assert await run_in_thread_if_large(MOST_ROWS_IN_LOOP + 1, threading.current_thread) is not here
