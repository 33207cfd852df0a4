"""Run many readers on one mount under faults, and check the invariants: `scripts/stress`.

contents.py   the bytes of a file, computed so that they need not be stored
archive.py    the working set, and the demo that publishes it
server.py     that demo as a process: files change, and logins expire
faults.py     the faults of replies, and the errors that a program may see for each
proxy.py      the fault server of the tests, as a process
programs.py   the programs that readers run, and the checks of their output
reader.py     one reader, as a process
watch.py      the mount from outside: memory, descriptors, counters, cache directory
verdict.py    the bytes read and the errors met, compared with the servers' journals
holding.py    the resources that a mount holds, while it runs and afterwards
rig.py        the start and the end of all processes
run.py        one run
report.py     docs/dev/STRESS.md
"""
