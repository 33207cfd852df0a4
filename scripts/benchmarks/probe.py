"""Time `stat` of every file of a directory, named in a list: python -m scripts.benchmarks.probe DIRECTORY NAMES.

It runs in a process of its own, since the interpreter's lock would distort the times. The names come from a file:
listing the directory would fill the kernel's cache, and no `stat` would reach the file system. Prints the start of each
call (seconds of the monotonic clock, which all processes share) and its duration, as JSON, when all are done or
standard input receives data.
"""

import json
import os
import random
import select
import sys
import time
from pathlib import Path


def main(directory: str, listed: str) -> int:
    names = Path(listed).read_text().splitlines()
    random.Random(4).shuffle(names)
    found = []
    print(flush=True)  # tells the parent process that the calls begin
    for name in names:
        if select.select([sys.stdin], [], [], 0)[0]:
            break
        path = f"{directory}/{name}"
        began = time.monotonic()
        os.stat(path)
        found.append((began, time.monotonic() - began))
        time.sleep(0.0005)  # the probe must not load the mount
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
