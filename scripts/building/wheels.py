"""Make the wheels that go into the one file: those of PyPI by digest, ours, and one of pyfuse3 with libfuse in it.

PyPI has pyfuse3 as source alone. It is compiled here against the stable ABI of Python 3.11, so that one wheel does for
that and all later Pythons, and with the libfuse of the oldest system whose Python is new enough (glibc 2.28: RHEL 8).
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
import venv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.building.bundle import zipped

HERE = Path(__file__).parent
REQUIREMENTS, TOOLS = HERE / "requirements.txt", HERE / "tools.txt"
PYTHONS = (11, 12, 13, 14)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PYFUSE3 = "3.5.0"
# Without an environment of its own for the source, which is only asked for its version.
SOURCE_ALONE = ("-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:")
# It tells this wheel from upstream's, and pip prefers it to the source of the same version.
LOCAL_VERSION = f"{PYFUSE3}+abi3"
# The Debian release whose libfuse is taken: its glibc symbols are those of 2.28.
LIBFUSE_SUITE = "bullseye"
# Where pyfuse3 uses what is not in the stable ABI: a class derived from a built-in one, and a macro.
STABLE_ABI = (
    ("cdef class FUSEError(Exception):", "class FUSEError(Exception):"),
    ("    cdef readonly int errno_\n", ""),
    (
        "    def __cinit__(self, errno):\n        self.errno_ = errno",
        "    def __init__(self, errno):\n        self.errno_ = errno",
    ),
    ("_pyfuse3.FUSEError = FUSEError\n", ""),
    (
        "\n@cython.freelist(10)\ncdef class PollHandle:",
        "_pyfuse3.FUSEError = FUSEError\n\n@cython.freelist(10)\ncdef class PollHandle:",
    ),
)


@dataclass(frozen=True)
class Builder:
    """Build wheels into a directory; all of their files have one time, in seconds since the epoch."""

    root: Path
    work: Path
    target: Path
    moment: int

    @property
    def environment(self) -> dict[str, str]:
        tools = self.work / "tools" / "bin"
        return {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SOURCE_DATE_EPOCH": str(self.moment),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONHASHSEED": "0",
        }

    def tool(self, *command: str | Path, cwd: Path | None = None, libraries: Path | None = None) -> None:
        """Run a tool, with further shared libraries. Raises SystemExit with its output if it fails."""
        key = hashlib.sha256(TOOLS.read_bytes()).hexdigest()
        stamp = self.work / "tools" / "made-for"
        if not stamp.exists() or stamp.read_text() != key:
            venv.create(self.work / "tools", clear=True, with_pip=True)
            run([self.work / "tools/bin/pip", "install", "-q", "-r", TOOLS], self.environment)
            stamp.write_text(key)
        run(command, {**self.environment, **({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})}, cwd)

    def ours(self) -> Path:
        """Build the wheel of this checkout."""
        shutil.rmtree(self.work / "lib", ignore_errors=True)  # setuptools takes what an earlier build left there
        options = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "-q")
        self.tool("pip", "wheel", *options, "-w", self.target, self.root)
        (made,) = self.target.glob("xnatfs-*.whl")
        return made

    def dependencies(self) -> list[Path]:
        """Fetch the wheels of all dependencies, for every Python, each by its digest."""
        key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
        directory = self.work / f"wheels-{key}"
        if not directory.exists():
            for minor in PYTHONS:
                options: list[str | Path] = [*for_python(minor), "--no-deps", "--require-hashes", "-r", REQUIREMENTS]
                self.tool("pip", "download", *options, "-d", f"{directory}.new")
            Path(f"{directory}.new").rename(directory)
        return sorted(directory.glob("*.whl"))

    def pyfuse3(self, system_libfuse: bool) -> Path:
        """Build the wheel of pyfuse3."""
        source = self._source()
        libfuse = None if system_libfuse else self._libfuse()
        made = self.work / "pyfuse3"
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(source / "src/pyfuse3", made / "pyfuse3")
        for path in made.glob("pyfuse3/*.p[xy]*"):
            path.write_text(path.read_text().replace("PyBytes_AS_STRING", "PyBytes_AsString"))
        text = (made / "pyfuse3/__init__.pyx").read_text()
        for before, after in STABLE_ABI:
            if text.count(before) != 1:
                raise SystemExit(f"scripts/build: pyfuse3 {PYFUSE3} has not one {before!r}")
            text = text.replace(before, after)
        (made / "pyfuse3/__init__.pyx").write_text(text)
        self.tool("cython", "-3", "-I", source / "Include", "pyfuse3/__init__.pyx", cwd=made)
        self._compile(made, libfuse)
        shutil.rmtree(self.work / "raw", ignore_errors=True)
        raw = self._wheel(made, source, libfuse)
        libraries = libfuse / "lib" if libfuse else None
        self.tool("auditwheel", "repair", raw, "-w", self.target, "--only-plat", libraries=libraries)
        (repaired,) = self.target.glob("pyfuse3-*.whl")
        return repaired

    def _source(self) -> Path:
        directory = self.work / f"pyfuse3-{PYFUSE3}"
        if not directory.exists():
            (pinned,) = re.findall(r"^# pyfuse3==\S+ (--hash=\S+)$", REQUIREMENTS.read_text(), re.MULTILINE)
            pin = self.work / "pyfuse3.txt"
            pin.write_text(f"pyfuse3=={PYFUSE3} {pinned}\n")
            self.tool("pip", "download", *SOURCE_ALONE, "--require-hashes", "-r", pin, "-d", self.work)
            self.tool("tar", "xzf", self.work / f"pyfuse3-{PYFUSE3}.tar.gz", "-C", self.work)
        return directory

    def _libfuse(self) -> Path:
        """Return a directory with `include` and `lib` of an old libfuse, out of a Debian root that is made for it."""
        directory = self.work / f"libfuse-{LIBFUSE_SUITE}"
        if not directory.exists():
            if os.getuid() or not shutil.which("debootstrap"):
                raise SystemExit("scripts/build: needs root and debootstrap, or --system-libfuse")
            root = self.work / "libfuse-root"
            shutil.rmtree(root, ignore_errors=True)
            options = ["--variant=minbase", "--include=libfuse3-dev"]
            run(["debootstrap", *options, LIBFUSE_SUITE, root], self.environment)
            new = Path(f"{directory}.new")
            shutil.rmtree(new, ignore_errors=True)
            (new / "lib").mkdir(parents=True)
            shutil.copytree(root / "usr/include/fuse3", new / "include/fuse3")
            shutil.copy2(root / "lib/x86_64-linux-gnu/libfuse3.so.3", new / "lib")
            (new / "lib/libfuse3.so").symlink_to("libfuse3.so.3")
            shutil.copy2(root / "usr/share/doc/libfuse3-3/copyright", new / "copyright")
            shutil.rmtree(root)
            new.rename(directory)
        return directory

    def _compile(self, made: Path, libfuse: Path | None) -> None:
        if libfuse:
            fuse = [f"-I{libfuse}/include/fuse3", f"-L{libfuse}/lib", "-lfuse3"]
        else:
            fuse = subprocess.check_output(["pkg-config", "--cflags", "--libs", "fuse3"], text=True).split()
        macros = ["-DFUSE_USE_VERSION=32", "-D_FILE_OFFSET_BITS=64", f"-DPy_LIMITED_API=0x030{PYTHONS[0]:X}0000"]
        flags = ["-shared", "-fPIC", "-O2", "-g0", "-w", "-Wl,--build-id=none", f"-ffile-prefix-map={made}=."]
        source, target = "pyfuse3/__init__.c", "pyfuse3/__init__.abi3.so"
        include = [f"-I{sysconfig.get_path('include')}", f"-I{sysconfig.get_path('platinclude')}", "-Ipyfuse3"]
        self.tool("gcc", *flags, *macros, *include, source, "-o", target, *fuse, cwd=made)

    def _wheel(self, made: Path, source: Path, libfuse: Path | None) -> Path:
        """Pack what was compiled, as a wheel that still looks for libfuse on its machine."""
        info = f"pyfuse3-{LOCAL_VERSION}.dist-info"
        copyright = libfuse / "copyright" if libfuse else Path("/usr/share/doc/libfuse3-3/copyright")
        metadata = (source / "PKG-INFO").read_text().replace(f"\nVersion: {PYFUSE3}\n", f"\nVersion: {LOCAL_VERSION}\n")
        files = {
            f"{info}/METADATA": metadata.encode(),
            f"{info}/WHEEL": WHEEL,
            f"{info}/licenses/LICENSE": (source / "LICENSE").read_bytes(),
            f"{info}/licenses/libfuse-copyright": copyright.read_bytes(),
            f"{info}/licenses/CHANGES": CHANGES.encode(),
        }
        for path in sorted((made / "pyfuse3").iterdir()):
            if path.suffix in (".py", ".pyi", ".so", ".typed") or path.name == "py.typed":
                files[f"pyfuse3/{path.name}"] = path.read_bytes()
        files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
        raw = self.work / "raw" / f"pyfuse3-{LOCAL_VERSION}-cp311-abi3-linux_x86_64.whl"
        raw.parent.mkdir()
        raw.write_bytes(zipped(files, self.moment))
        return raw


WHEEL = b"""\
Wheel-Version: 1.0
Generator: scripts/build
Root-Is-Purelib: false
Tag: cp311-abi3-linux_x86_64
"""

CHANGES = f"""\
This is pyfuse3 {PYFUSE3}, compiled against Python's stable ABI, with libfuse beside it. For that, FUSEError is a Python
class, and PyBytes_AsString stands for PyBytes_AS_STRING. The sources are pyfuse3 {PYFUSE3} on PyPI, scripts/building of
xnatfs, and Debian's package fuse3. pyfuse3 and libfuse are under the LGPL: other builds of them may take their place.
"""


def _record(files: dict[str, bytes], record: str) -> bytes:
    lines = []
    for name, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{record},,\n"]).encode()


def for_python(minor: int) -> list[str]:
    """Return the options of pip that choose the wheels for one Python."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    abis = [word for abi in (f"cp3{minor}", "abi3", "none") for word in ("--abi", abi)]
    return [
        "-q",
        "--only-binary",
        ":all:",
        "--implementation",
        "cp",
        "--python-version",
        f"3.{minor}",
        *platforms,
        *abis,
    ]


def lock(root: Path, work: Path) -> None:
    """Write `requirements.txt`: the newest version of each dependency, with the digests of its wheels."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    directory = work / "newest"
    shutil.rmtree(directory, ignore_errors=True)
    builder = Builder(root, work, directory, 0)
    for minor in PYTHONS:
        builder.tool("pip", "download", *for_python(minor), "-d", directory, *project["dependencies"])
    builder.tool("pip", "download", *SOURCE_ALONE, f"pyfuse3=={PYFUSE3}", "-d", directory)
    (source,) = directory.glob("pyfuse3-*.tar.gz")
    lines = [
        "# What goes into xnatfs as one file, for every Python that it runs on. Written by: scripts/build --lock",
        f"# pyfuse3=={PYFUSE3} --hash=sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}",
        *_pins(directory.glob("*.whl")),
    ]
    REQUIREMENTS.write_text("\n".join(lines) + "\n")


def _pins(wheels: Iterable[Path]) -> list[str]:
    digests: dict[str, list[str]] = {}
    for wheel in sorted(wheels):
        name, version = wheel.name.split("-")[:2]
        digests.setdefault(f"{name.replace('_', '-').lower()}=={version}", []).append(
            f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
        )
    return [" \\\n    ".join([pin, *sorted(found)]) for pin, found in sorted(digests.items())]


def run(command: Sequence[str | Path], environment: dict[str, str], cwd: Path | None = None) -> None:
    """Run a command. Raises SystemExit with what it has printed if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"scripts/build: {words[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
