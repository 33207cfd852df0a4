"""Receive big files in processes of their own: the bytes go into the cache file without passing through the daemon.

process.py     the process: one request at a time, its body written where the daemon says
connection.py  its connection to the server
pool.py        the daemon's side: a transport of httpx that starts and ends the processes

Nothing is imported here: the process has to start in 50 ms, and needs none of what the daemon needs.
"""
