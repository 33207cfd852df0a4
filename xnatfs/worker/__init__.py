"""Processes that carry big files: what the server sends goes straight into the cache file, and never through here.

process.py  the process: one request at a time, its body written where it is told
pool.py     the daemon's side: a transport of httpx, which starts and ends the processes
"""

from xnatfs.worker.pool import ProcessLost, Workers, Writable, open_workers

__all__ = ["ProcessLost", "Workers", "Writable", "open_workers"]
