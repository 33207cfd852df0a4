"""Processes that carry big files: what the server sends goes straight into the cache file, and never through here.

process.py     the process: one request at a time, its body written where it is told
connection.py  its way to the server
splice.py      from there into a file without a copy
pool.py        the daemon's side: a transport of httpx, which starts and ends the processes

Nothing is imported here: the process is to start in 50 ms, and needs none of what the daemon needs.
"""
