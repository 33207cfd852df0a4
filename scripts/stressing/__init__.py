"""Many readers on one mount while much goes wrong, and what must hold then: `scripts/stress`.

contents.py   what the bytes of a file are, so that nobody has to keep them
archive.py    the working set, and the demo that publishes it
server.py     that demo as a process: files change, logins are forgotten
faults.py     which faults answers meet, and what a program may see of each
proxy.py      the fault server of the tests, as a process
programs.py   what readers run, and what they make of it
reader.py     one reader, as a process
watch.py      the mount seen from outside: memory, descriptors, counters, its directory
verdict.py    what was read and what errors were met, held against the journals of the servers
holding.py    what a mount holds, while it runs and after
rig.py        the processes, and their ends
run.py        one run
report.py     docs/dev/STRESS.md
"""
