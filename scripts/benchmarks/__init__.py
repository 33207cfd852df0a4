"""Measure xnatfs beside other programs, and check every byte: `scripts/bench`.

archives.py   files with known bytes, in the layout that the demo publishes
site.py       the servers: the demo, nginx in front of it, delays, TLS
link.py       a link of 1 Gbit/s
requests.py   the requests that the servers received, and their longest sequence
rig.py        the xnatfs mount, the clock, the kernel's page cache
peers.py      other programs, if they are available
bare.py       a file system that only answers: the minimal cost of FUSE in Python
probe.py      repeated timing of `stat`, in a process of its own
cases/        one function per row of the table, or per group of rows
report.py     medians, ratios, docs/dev/BENCHMARKS.md and its figures as JSON
plots.py      the plots of that page, drawn from these
"""
