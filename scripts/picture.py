"""Write docs/mount.svg, the README's animation, from a real run: python -m scripts.picture.

The commands run as they are shown, except that a demo server replaces the server's address. Their output appears with
its real timing. Needs termtosvg and dcm2niix (pip install termtosvg dcm2niix).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xnatfs.demo.fixtures.lab import PASSWORDS, DemoArchive
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve

PICTURE = Path(__file__).parent.parent / "docs" / "mount.svg"
COLUMNS, ROWS = 92, 18
SHOWN_URL = "https://xnat.example.org"
USER = "demo-owner"
COMMANDS = [
    f"xnatfs mount --url {SHOWN_URL} ~/xnat",
    "ls ~/xnat/projects/BRAINS",
    "ls ~/xnat/projects/BRAINS/SUB001/SUB001_MR1/scans/1/DICOM | head -n 4",
    "dcm2niix -f %p -o . ~/xnat/projects/BRAINS/SUB001/SUB001_MR1/scans/1/DICOM | tail -n 2",
    "ls *.nii",
    "xnatfs umount ~/xnat",
]
# Seconds between two keys, and from an output to the next command: about ten seconds in all, slow enough to read.
KEY, READ = 0.02, 0.8


class Recording:
    """A recorded terminal session in asciicast version 2."""

    def __init__(self) -> None:
        self.lines = [json.dumps({"version": 2, "width": COLUMNS, "height": ROWS})]
        self.now = 0.0

    def show(self, text: str, after: float) -> None:
        """Add output, `after` seconds after the previous one."""
        self.now += after
        self.lines.append(json.dumps([round(self.now, 3), "o", text.replace("\n", "\r\n")]))


def record(url: str, home: Path) -> Recording:
    """Run the commands against a server, and return the recording of the terminal."""
    recording = Recording()
    (home / "xnat").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "HOME": str(home), "PATH": path, "XNAT_USER": USER, "XNAT_PASS": PASSWORDS[USER]}
    for command in COMMANDS:
        recording.show("\x1b[32m$\x1b[0m ", READ)
        for key in command:
            recording.show(key, KEY)
        began = time.monotonic()
        done = subprocess.run(
            ["sh", "-c", command.replace(SHOWN_URL, url)], cwd=home, env=env, capture_output=True, text=True, check=True
        )
        text = (done.stdout + done.stderr).replace(str(home), "~").replace(url, SHOWN_URL)
        recording.show(f"\n{text}", time.monotonic() - began)
    recording.show("", 2 * READ)
    return recording


def main() -> None:
    with serve(DemoXnat(DemoArchive())) as url, tempfile.TemporaryDirectory() as home:
        recording = record(url, Path(home))
        cast = Path(home, "session.cast")
        cast.write_text("\n".join(recording.lines) + "\n")
        subprocess.run(["termtosvg", "render", cast, PICTURE, "-t", "window_frame", "-D", "2000"], check=True)
    print(f"{PICTURE}: {len(COMMANDS)} commands, {recording.now:.1f} s, {PICTURE.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
