"""How fast, beside whom, and checked: `scripts/bench`.

rig.py      the servers that are measured on, and the programs that are measured
cases.py    one function per row of the table
report.py   medians, ratios, docs/BENCHMARKS.md
"""
