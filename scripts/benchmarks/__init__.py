"""How fast, beside whom, and checked: `scripts/bench`.

archives.py   files of known bytes, in the layout that the demo publishes
site.py       the servers that are measured on: the demo, nginx before it, delays, TLS
link.py       a link of 1 Gbit/s
requests.py   what was asked of them, and how much of it one after the other
rig.py        our mount, the clock, the kernel's pages
peers.py      other people's programs, each where it can be had
bare.py       a file system that answers and does nothing else: what FUSE in Python costs at least
probe.py      how long `stat` takes, over and over, in a process of its own
cases/        one function per row of the table, or for a few that belong together
report.py     medians, ratios, docs/dev/BENCHMARKS.md
"""
