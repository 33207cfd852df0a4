"""Case about many machines: nodes that read the same files, with and without a store that they share."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks import archives, rig
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.report import Row
from scripts.benchmarks.site import PASSWORD, USER, Server

NODES = 8
DELAY_SECONDS = 0.02
FOLDER = f"projects/SMALL/SUBJECT/{archives.SESSION}/scans/1/DICOM" if "/" not in archives.SESSION else ""
# A node has a home and a cache of its own. It prints the MD5 of all that it reads.
NODE = """
import hashlib, sys, xnatfs
url, cache, shared, folder = sys.argv[1:]
options = {"shared_cache": shared} if shared else {}
read = hashlib.md5()
with xnatfs.open(url, cache_dir=cache, **options) as server:
    for path in sorted(entry.path for entry in server.list(folder)):
        read.update(server.read(path))
print(read.hexdigest())
"""
