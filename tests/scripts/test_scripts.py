"""Test the scripts, run in a copy among stub commands that record how they were called."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tests.support import real_data

ROOT = Path(__file__).parents[2]
# Programs, that is; what is run by `python -m` has an ending.
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)
TOOLS = ["bash", "cat", "dirname", "env", "grep", "mkdir", "mktemp", "rm", "sed", "sh", "sha256sum", "sort", "tail"]


@dataclass
class Checkout:
    """A copy of the scripts, with a PATH of its own that holds TOOLS and stubs, on a system that has everything."""

    root: Path

    def __post_init__(self) -> None:
        for directory in (self.bin, self.root / ".venv/bin", self.root / "home", self.root / "tmp"):
            directory.mkdir(parents=True)
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool} here"))
        (self.bin / "python3").symlink_to(getattr(sys, "_base_executable", sys.executable))
        self.stub("apt-get")
        self.stub("dpkg", '[ "$(printf "%s\\n" "$2" "$4" | sort -V | tail -n 1)" = "$2" ]')
        self.installed_packages_without("")
        self.distribution("debian", "12")
        self.stub("id", "echo 0")
        self.stub(".venv/bin/python", '[ "$1" != -V ] || echo Python 3.11.2')
        for program in ("ruff", "mypy", "xnatfs"):
            self.stub(f".venv/bin/{program}")
        (self.root / ".venv/bin/pip").write_text(f"#!{self.root}/.venv/bin/python\n")

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    def stub(self, name: str, script: str = "") -> None:
        path = self.root / name if "/" in name else self.bin / name
        path.unlink(missing_ok=True)
        with path.open("x") as file:  # never through a link to the real command
            file.write(f'#!/bin/sh\necho "{path.name} $*" >>"{self.root}/calls"\n{script}\n')
        path.chmod(0o755)

    def installed_packages_without(self, missing: str) -> None:
        self.stub("dpkg-query", f'shift 3; for p; do [ "$p" = "{missing}" ] || echo "installed $p"; done')

    def distribution(self, name: str, version: str) -> None:
        (self.root / "os-release").write_text(f'NAME="Some System"\nID={name}\nVERSION_ID="{version}"\n')

    def run(self, *command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script, after emptying the list of calls."""
        (self.root / "calls").unlink(missing_ok=True)
        given = {"PATH": str(self.bin), "HOME": str(self.root / "home"), "TMPDIR": str(self.root / "tmp")}
        given |= {"XNATFS_OS_RELEASE": str(self.root / "os-release")}
        script = [str(self.root / command[0]), *command[1:]]
        return subprocess.run(script, cwd=cwd, env=given | environment, capture_output=True, text=True, timeout=120)

    def calls(self, *programs: str) -> list[str]:
        recorded = self.root / "calls"
        lines = recorded.read_text().splitlines() if recorded.exists() else []
        return [line.rstrip() for line in lines if line.split()[0] in programs]

    def pip_calls(self) -> list[str]:
        return [call for call in self.calls("python") if call.startswith("python -m pip")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_can_be_parsed_and_run(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\n")
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)


# Set-up


@pytest.mark.parametrize("extra", ["demo", "test"])
def test_second_setup_calls_neither_apt_nor_pip(checkout: Checkout, extra: str) -> None:
    assert checkout.run("scripts/setup", extra).returncode == 0
    assert [call.split()[-1] for call in checkout.pip_calls()] == [f".[{extra}]"]

    second = checkout.run("scripts/setup", extra)

    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert checkout.pip_calls() == checkout.calls("apt-get", "sudo") == []


def test_setup_for_tests_is_one_for_the_demo_too(checkout: Checkout) -> None:
    checkout.run("scripts/setup", "test")
    checkout.run("scripts/setup", "demo")
    assert checkout.pip_calls() == []


def test_changed_pyproject_is_installed_again(checkout: Checkout) -> None:
    checkout.run("scripts/setup", "demo")
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    checkout.run("scripts/setup", "demo")
    assert len(checkout.pip_calls()) == 1


def test_failed_pip_is_one_line_and_is_tried_again(checkout: Checkout) -> None:
    failing = 'case "$*" in *install*) echo "  ERROR: No matching distribution found for httpx"; exit 1 ;; esac'
    checkout.stub(".venv/bin/python", failing)
    for _ in range(2):
        result = checkout.run("scripts/setup", "demo")
        progress, error = result.stderr.splitlines()
        assert result.returncode == 1
        assert progress == "installing Python packages into .venv ..."
        assert "ERROR: No matching distribution found for httpx" in error
        assert Path(error.rpartition(" is in ")[2].rstrip(")")).read_text().startswith("  ERROR")


@pytest.mark.parametrize("damage", ["moved", "half made", "its Python is gone"])
def test_unusable_venv_is_made_anew(checkout: Checkout, damage: str) -> None:
    match damage:
        case "moved":
            (checkout.root / ".venv/bin/pip").write_text("#!/somewhere/else/.venv/bin/python\n")
        case "half made":
            (checkout.root / ".venv/bin/pip").unlink()
        case "its Python is gone":
            (checkout.root / ".venv/bin/python").unlink()
    # venv is not a stub here; what pip would do next fails for want of a network.
    result = checkout.run("scripts/setup", "demo", PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
    assert result.stderr.splitlines()[:2] == ["making .venv ...", "installing Python packages into .venv ..."]
    assert f"{checkout.root}/.venv/bin/python" in (checkout.root / ".venv/bin/pip").read_text()


def test_venv_of_another_checkout_is_not_emptied_through_a_link(checkout: Checkout, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (other / "bin/pip").write_text("#!/elsewhere/.venv/bin/python\n")
    shutil.rmtree(checkout.root / ".venv")
    (checkout.root / ".venv").symlink_to(other)
    done = checkout.run("scripts/setup")
    assert (done.returncode, (other / "bin/pip").exists()) == (1, True)
    assert done.stderr == "scripts/setup: .venv is a link, to what may be another checkout's: remove it first\n"


def test_missing_package_is_installed_by_root(checkout: Checkout) -> None:
    checkout.installed_packages_without("fuse3")
    result = checkout.run("scripts/setup", "demo")
    assert result.stderr.startswith("installing system packages: fuse3 ...\n")
    update, install = checkout.calls("apt-get", "sudo")
    assert update == "apt-get update"
    assert install.startswith("apt-get install -y ")
    assert install.endswith(" fuse3")


def test_missing_package_is_installed_through_sudo(checkout: Checkout) -> None:
    checkout.installed_packages_without("fuse3")
    checkout.stub("id", "echo 1000")
    checkout.stub("sudo", '"$@"')
    assert checkout.run("scripts/setup", "demo").returncode == 0
    sudo_update, update, sudo_install, install = checkout.calls("apt-get", "sudo")
    assert (sudo_update, update) == ("sudo apt-get update", "apt-get update")
    assert sudo_install == f"sudo env DEBIAN_FRONTEND=noninteractive {install}"


def test_missing_package_without_sudo_names_the_command(checkout: Checkout) -> None:
    checkout.installed_packages_without("fuse3")
    checkout.stub("id", "echo 1000")
    result = checkout.run("scripts/setup", "demo")
    assert result.returncode == 69
    assert result.stderr == "scripts/setup: no sudo here; as root: apt-get update && apt-get install fuse3\n"


def test_failed_apt_is_one_line(checkout: Checkout) -> None:
    checkout.installed_packages_without("fuse3")
    checkout.stub("apt-get", 'echo "E: Unable to locate package fuse3" >&2; exit 100')
    result = checkout.run("scripts/setup", "demo")
    assert result.returncode == 1
    assert "E: Unable to locate package fuse3" in result.stderr.splitlines()[1]
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "version"), [("debian", "11"), ("ubuntu", "22.04"), ("fedora", "41"), ("linuxmint", "22")]
)
def test_another_distribution_is_told_the_packages(checkout: Checkout, name: str, version: str) -> None:
    checkout.installed_packages_without("libfuse3-dev")
    checkout.distribution(name, version)
    result = checkout.run("scripts/setup", "demo")
    assert result.returncode == 69
    assert len(result.stderr.splitlines()) == 1
    assert "libfuse3-dev" in result.stderr
    assert checkout.calls("apt-get") == []


@pytest.mark.parametrize("version", ["24.04", "25.10"])
def test_ubuntu_is_set_up(checkout: Checkout, version: str) -> None:
    checkout.installed_packages_without("libfuse3-dev")
    checkout.distribution("ubuntu", version)
    assert checkout.run("scripts/setup", "demo").returncode == 0
    assert len(checkout.calls("apt-get")) == 2


def test_system_without_apt_is_told_every_package(checkout: Checkout) -> None:
    for program in ("apt-get", "dpkg", "dpkg-query"):
        (checkout.bin / program).unlink()
    result = checkout.run("scripts/test")
    assert result.returncode == 69
    assert len(result.stderr.splitlines()) == 1
    assert all(package in result.stderr for package in ("python3", "gcc", "libfuse3-dev", "fuse3", "rsync"))


def test_system_without_apt_works_once_it_has_what_is_needed(checkout: Checkout) -> None:
    for program in ("apt-get", "dpkg", "dpkg-query"):
        (checkout.bin / program).unlink()
    for program in ("gcc", "fusermount3", "pkg-config"):
        checkout.stub(program)
    assert checkout.run("scripts/setup", "demo").returncode == 0


# The others


def test_demo_mounts_in_the_home_directory(checkout: Checkout) -> None:
    assert checkout.run("scripts/demo").returncode == 0
    assert checkout.calls("xnatfs") == [f"xnatfs demo {checkout.root}/home/xnat-demo"]
    assert (checkout.root / "home/xnat-demo").is_dir()


def test_demo_takes_a_mountpoint_and_options(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.run("scripts/demo", "a b/mnt", "--foreground", cwd=tmp_path).returncode == 0
    assert checkout.calls("xnatfs") == ["xnatfs demo a b/mnt --foreground"]
    assert (tmp_path / "a b/mnt").is_dir()


def test_ci_checks_before_it_tests(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.run(".ci/run", cwd=tmp_path).returncode == 0
    last = [call.partition(" ")[0] for call in checkout.calls("python", "ruff", "mypy")][-3:]
    assert last == ["ruff", "mypy", "python"]
    assert checkout.calls("python")[-1] == "python -m pytest --numprocesses auto --dist loadfile --max-worker-restart 0"


def test_the_fast_tests_mount_nothing_and_start_no_programs(checkout: Checkout) -> None:
    assert checkout.run("scripts/test", "--fast", "-k", "rows").returncode == 0
    call = checkout.calls("python")[-1]
    assert " -m not fuse and not real_data -k rows " in call
    left_out = {word.removeprefix("--ignore=") for word in call.split() if word.startswith("--ignore=")}
    assert {"tests/cli", "tests/programs", "tests/promises"} <= left_out
    assert all((ROOT / folder).is_dir() for folder in left_out)


@pytest.mark.parametrize("checker", ["ruff", "mypy"])
def test_nothing_is_tested_when_a_check_fails(checkout: Checkout, checker: str) -> None:
    checkout.stub(f".venv/bin/{checker}", "exit 1")
    assert checkout.run("scripts/test").returncode == 1
    assert "python -m pytest" not in checkout.calls("python")


# The real data, on a small archive of the same make


def dicom(description: str) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.Modality, dataset.SeriesDescription = "MR", description
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> real_data.Source:
    """Provide a source whose archive is in the cache; fetching it again fails."""
    case = {f"Case001/scans/{n}_SCAN 1_ T2/DICOM/{n}.dcm": dicom("SCAN 1: T2") for n in (3, 10)}
    scan = "ANONYMIZ/scans/6_--T1final--"
    anonymiz = {f"{scan}/DICOM/1.dcm": dicom("--T1final--"), f"{scan}/SNAPSHOTS/qc.gif": b"GIF89a"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.mkdir("ANONYMIZ")
        for name, content in anonymiz.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 4, 21, 8, 27, 0)), content)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {**case, "ANONYMIZ.zip": zipped.getvalue(), "../README.md": b"other"}.items():
            member = tarfile.TarInfo(f"xnat-0/xnat/tests/resources/{name}")
            member.size, member.mtime = len(content), 1580601600
            tar.addfile(member, io.BytesIO(content))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(real_data, "run_pip_download", no_registry)
    cache = real_data.cache_directory()
    cache.mkdir(parents=True)
    (cache / "xnat-0.tar.gz").write_bytes(packed.getvalue())
    return real_data.Source(
        requirement="xnat==0",
        filename="xnat-0.tar.gz",
        size=len(packed.getvalue()),
        sha256=hashlib.sha256(packed.getvalue()).hexdigest(),
        sessions={
            "Case001": (2, sum(map(len, case.values()))),
            "ANONYMIZ": (2, sum(map(len, anonymiz.values()))),
        },
    )


def no_registry(source: real_data.Source, directory: Path) -> None:
    raise real_data.RealDataError(f"cannot fetch {source.requirement}: no registry")


def test_sessions_are_laid_out_for_the_demo_server(source: real_data.Source, tmp_path: Path) -> None:
    real_data.lay_out(source, tmp_path / "data")

    project = tmp_path / "data/xnatpy_test_data"
    assert sorted(str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()) == [
        "ANONYMIZ/ANONYMIZ/scans.tsv",
        "ANONYMIZ/ANONYMIZ/scans/6/DICOM/1.dcm",
        "ANONYMIZ/ANONYMIZ/scans/6/SNAPSHOTS/qc.gif",
        "Case001/Case001/scans.tsv",
        "Case001/Case001/scans/10/DICOM/10.dcm",
        "Case001/Case001/scans/3/DICOM/3.dcm",
    ]
    assert (project / "Case001/Case001/scans.tsv").read_text() == (
        "id\ttype\tseries_description\tquality\txsitype\n"
        "3\tSCAN 1: T2\tSCAN 1: T2\tusable\txnat:mrScanData\n"
        "10\tSCAN 1: T2\tSCAN 1: T2\tusable\txnat:mrScanData\n"
    )
    assert (project / "Case001/Case001/scans/3/DICOM/3.dcm").stat().st_mtime == 1580601600
    assert os.listdir(project.parent) == [project.name]


def test_complete_layout_is_left_alone(source: real_data.Source, tmp_path: Path) -> None:
    real_data.lay_out(source, tmp_path / "data")
    (real_data.cache_directory() / source.filename).unlink()
    real_data.lay_out(source, tmp_path / "data")


def test_incomplete_layout_is_not_overwritten(source: real_data.Source, tmp_path: Path) -> None:
    mine = tmp_path / "data/xnatpy_test_data/mine"
    mine.mkdir(parents=True)
    with pytest.raises(real_data.RealDataError, match="remove it"):
        real_data.lay_out(source, tmp_path / "data")
    assert mine.is_dir()


def test_layout_of_the_tests_repairs_itself(
    source: real_data.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_data, "XNATPY", source)
    image = real_data.sample_sessions() / "xnatpy_test_data/Case001/Case001/scans/3/DICOM/3.dcm"
    image.unlink()
    assert real_data.sample_sessions() in image.parents
    assert image.is_file()


def test_damaged_archive_in_the_cache_is_fetched_again(source: real_data.Source, tmp_path: Path) -> None:
    (real_data.cache_directory() / source.filename).write_bytes(bytes(source.size))
    with pytest.raises(real_data.RealDataError, match="no registry"):
        real_data.lay_out(source, tmp_path / "data")


def test_archive_with_another_hash_is_refused(
    source: real_data.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch_another(source: real_data.Source, directory: Path) -> None:
        (directory / source.filename).write_bytes(bytes(source.size))

    monkeypatch.setattr(real_data, "run_pip_download", fetch_another)
    (real_data.cache_directory() / source.filename).unlink()
    with pytest.raises(real_data.RealDataError, match="wrong size or SHA-256"):
        real_data.lay_out(source, tmp_path / "data")
    assert os.listdir(real_data.cache_directory()) == ["lock"]
    assert not (tmp_path / "data").exists()


def test_archive_without_the_sessions_leaves_nothing_behind(source: real_data.Source, tmp_path: Path) -> None:
    source.sessions["Case003"] = (1, 1)
    with pytest.raises(real_data.RealDataError, match="does not hold"):
        real_data.lay_out(source, tmp_path / "data")
    assert os.listdir(tmp_path / "data") == []


def test_without_a_registry_the_variable_is_named(source: real_data.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_data, "XNATPY", source)
    (real_data.cache_directory() / source.filename).unlink()
    with pytest.raises(real_data.RealDataError, match="XNATFS_WITHOUT_REAL_DATA=1") as caught:
        real_data.sample_sessions()
    assert len(str(caught.value).splitlines()) == 1
