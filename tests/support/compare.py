"""Read or list a mount and compare it with the directory that its server publishes; report mismatches and failures.

    python -I -S compare.py read|list MOUNT TRUTH [FILE...]

A program of its own: what the kernel does to it is what the tests are about. One line of JSON.
"""

import json
import os
import sys

CHUNK = 128 * 1024


def read(mount: str, truth: str, names: list[str]) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {"whole": [], "wrong": [], "errors": []}
    for name in names:
        try:
            with open(f"{mount}/{name}", "rb", buffering=0) as file, open(f"{truth}/{name}", "rb") as true:
                while data := file.read(CHUNK):
                    if data != true.read(len(data)):
                        found["wrong"].append(name)
                        break
                else:
                    found["wrong" if true.read(1) else "whole"].append(name)
        except OSError as error:
            found["errors"].append([name, error.errno])
    return found


def look(mount: str, truth: str) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {"whole": [], "wrong": [], "errors": []}

    def failed(error: OSError) -> None:
        found["errors"].append([error.filename, error.errno])

    for folder, folders, files in os.walk(truth):
        below = os.path.relpath(folder, truth)
        try:
            names = set(os.listdir(f"{mount}/{below}"))
            if names.issuperset([*folders, *files]):
                found["whole"].append(below)
            else:
                found["wrong"].append([below, sorted(names)])
            for name in files:
                if os.stat(f"{mount}/{below}/{name}").st_size != os.stat(f"{folder}/{name}").st_size:
                    found["wrong"].append(f"{below}/{name}")
        except OSError as error:
            failed(error)
    return found


if __name__ == "__main__":
    what, mount, truth, *names = sys.argv[1:]
    print(json.dumps(read(mount, truth, names) if what == "read" else look(mount, truth)))
