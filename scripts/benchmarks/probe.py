"""python -m scripts.benchmarks.probe DIRECTORY NAMES: `stat` of every file of a directory whose names NAMES lists.

In a process of its own, since Python's lock would be what is measured. The names come from elsewhere: to list the
directory would fill the kernel's cache, and no `stat` would reach the file system. Prints when each began (seconds of
the monotonic clock, which all processes share) and how long it took, as JSON, when all are done or something comes from
standard input.
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
    print(flush=True)  # who waits for this knows that it has begun
    for name in names:
        if select.select([sys.stdin], [], [], 0)[0]:
            break
        path = f"{directory}/{name}"
        began = time.monotonic()
        os.stat(path)
        found.append((began, time.monotonic() - began))
        time.sleep(0.0005)  # a guest, not a load
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
