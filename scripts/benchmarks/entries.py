"""List a directory as a program does, and time it: python -m scripts.benchmarks.entries DIRECTORY.

Prints, as JSON, when it began (on the monotonic clock), the seconds to the first entry and to the last, and how many
there are. Entries are taken as they come: `ls` sorts all of them first.
"""

import json
import os
import sys
import time


def main(directory: str) -> int:
    began, first, count = time.monotonic(), 0.0, 0
    for count, _ in enumerate(os.scandir(directory), 1):
        if count == 1:
            first = time.monotonic() - began
    json.dump((began, first, time.monotonic() - began, count), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
