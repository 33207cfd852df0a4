"""Run xnatctl as users do: commands in processes of their own, against a demo in this process.

The archive is that of the key-concepts page: its names are those of the commands there.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.changing import images, zip_of
from tests.support.mounting import SCRIPTS, environment, run
from xnatfs.common.files import write_private
from xnatfs.demo.archive.model import Archive, Experiment, User
from xnatfs.demo.server.app import DemoXnat, Record
from xnatfs.demo.server.releases import RELEASES, XNAT_1_6
from xnatfs.demo.server.socket import serve

OWNER, MEMBER, COLLABORATOR, OUTSIDER = "jane", "mike", "carol", "otto"
PASSWORD = "open sesame"
SESSION = "XNAT_E00001"
LABEL = "SUB001_MR_20240115"

# The releases of XNAT of the server of the fixture `fresh`.
EVERY_RELEASE = pytest.mark.parametrize("fresh", RELEASES.values(), ids=list(RELEASES), indirect=True)
XNAT_1_6_ALONE = pytest.mark.parametrize("fresh", [XNAT_1_6], ids=[XNAT_1_6.name], indirect=True)


def page_archive() -> Archive:
    """Make the archive of the page: MYPROJECT with SUB001, its session XNAT_E00001, and what else commands may meet."""
    archive = Archive()
    for name in (OWNER, MEMBER, COLLABORATOR, OUTSIDER):
        archive.users[name] = User(name, PASSWORD)
    archive.users["root"] = User("root", PASSWORD, admin=True)
    mine = archive.project("MYPROJECT", "My project", jane="Owners", mike="Members", carol="Collaborators")
    mine.description = "A description that is longer than the fifty characters at which another program cuts it off"
    one = archive.subject(mine, "SUB001", "XNAT_S00001")
    session = archive.experiment(one, LABEL, SESSION, date="2024-01-15")
    for number, id in enumerate(("1", "2", "3", "10", "4-MR2")):
        scan = archive.scan(session, id, f"T{number}", series_description=f"series {id}")
        dicom = archive.resource(scan.resources, "DICOM", "DICOM", "RAW")
        for index in range(3):
            archive.file(dicom, f"{id}.{index}.dcm", f"scan {id}, image {index}".encode() * 100)
    nifti = archive.resource(session.scans[0].resources, "NIFTI", "NIFTI")
    archive.file(nifti, "image.nii.gz", bytes(range(256)) * 8)
    odd = archive.resource(session.resources, "odd # 100% label?", "TXT")
    archive.file(odd, "a b.txt", b"text")
    archive.file(archive.resource(session.resources, "QC", "TXT"), "qc.txt", b"fine")
    archive.experiment(one, "SUB001_PET_20230101", "XNAT_E00002", xsi_type="xnat:petSessionData", date="2023-01-01")
    two = archive.subject(mine, "SUB002", "XNAT_S00002")
    archive.experiment(two, "SUB002_CT", "XNAT_E00003", xsi_type="xnat:ctSessionData")
    archive.experiment(two, "SUB002_EEG", "XNAT_E00004", xsi_type="xnat:eegSessionData")
    archive.experiment(two, "XNAT_EEG_01", "XNAT_E00005")
    for name, accession in (("A", "XNAT_E00011"), ("B", "CENTRAL_E00012")):
        project = archive.project(name, name, jane="Owners")
        archive.experiment(archive.subject(project, "S"), "BASELINE_MR", accession)
    archive.project("_2-b_", "An ID that people choose", jane="Owners")
    archive.project("EMPTY", "Nothing in it", jane="Owners")
    return archive


@dataclass
class Done:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> Any:
        """Return the JSON that it has printed."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass
class Shell:
    """A user at a prompt, with a home of their own."""

    app: DemoXnat
    url: str
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = (str(SCRIPTS / "xnatctl"),)

    def ctl(self, *words: str | Path, status: int = 0, **more: Any) -> Done:
        """Run one command, and check its exit status."""
        done = self.start(*words, **more)
        assert done.status == status, f"{words}: {done}"
        assert "Traceback" not in done.err, done.err
        return done

    def start(self, *words: str | Path, **more: Any) -> Done:
        done = run(*self.program, *words, env=self.environment(), cwd=self.home, stdin=subprocess.DEVNULL, **more)
        return Done(done.returncode, done.stdout, done.stderr)

    def environment(self) -> dict[str, str]:
        return environment(self.home, **self.env)

    def asked(self, *words: str | Path, status: int = 0) -> list[str]:
        """Return the requests that one more command sends, in a form that is easy to compare."""
        before = len(self.app.requests)
        self.ctl(*words, status=status)
        return [f"{record.method} {record.path}" for record in self.app.requests[before:]]

    def logins(self) -> int:
        return sum(record.method == "POST" and record.path == "/data/JSESSION" for record in self.app.requests)

    def requests(self, method: str, pattern: str = "") -> list[Record]:
        return [r for r in self.app.requests if r.method == method and re.search(pattern, r.path)]

    def config(self, text: str) -> None:
        write_private(self.home / ".config" / "xnatctl" / "config.yaml", text)

    @property
    def slot(self) -> Path:
        return self.home / ".config" / "xnatctl" / ".session"

    def as_user(self, name: str) -> "Shell":
        """Return the shell of another user at another machine."""
        home = self.home.with_name(f"{self.home.name}-{name}")
        home.mkdir(exist_ok=True)
        return Shell(self.app, self.url, home, {**self.env, "XNAT_USER": name})

    def receive(self, label: str, project: str = "MYPROJECT", subject: str = "SUB001", *, ready: bool = True) -> str:
        """Send a session into the prearchive as another user; return its path."""
        with httpx.Client(base_url=self.url, auth=("root", PASSWORD), timeout=60) as http:
            query = f"inbody=true&dest=/prearchive/projects/{project}&project={project}&subject={subject}"
            reply = http.post(
                f"/data/services/import?{query}&session={label}",
                content=zip_of(images(f"1.2.{len(self.app.requests)}")),
                headers={"Content-Type": "application/zip"},
            )
            uri = reply.raise_for_status().text.strip()
            if ready:
                assert http.post(f"{uri}?action=commit").status_code in (200, 301)
        return uri

    def session(self, key: str = SESSION) -> Experiment:
        return self.app.archive.experiments[key]

    def older(self, seconds: float) -> None:
        """Let time pass for what is stored in this home: times in it move into the past."""
        for path in (*(self.home / ".config" / "xnatfs" / "sessions").glob("*.json"), self.slot):
            if path.exists():
                cells = json.loads(path.read_text())
                for key in ("created_at", "last_used_at", "expires_at"):
                    if cells.get(key):
                        moved = datetime.fromisoformat(cells[key]) - timedelta(seconds=seconds)
                        cells[key] = moved.isoformat()
                path.write_text(json.dumps(cells))


def received(shell: Shell, label: str) -> str:
    """Receive a session that waits under this label, whatever the release makes of labels; return its path."""
    path = shell.receive(label).removeprefix("/data")
    (waiting,) = [one for one in shell.app.writing.prearchive.sessions if one.path == path]
    waiting.session.label, waiting.subject, waiting.folder = label, "SUB001", label
    return waiting.path


@contextmanager
def shell(home: Path, archive: Archive | None = None, **options: Any) -> Iterator[Shell]:
    """Provide a user of the page's archive with this home, the variables set and no profile."""
    home.mkdir(exist_ok=True)
    app = DemoXnat(archive or page_archive(), **options)
    with serve(app) as url:
        yield Shell(app, url, home, {"XNAT_URL": url, "XNAT_USER": OWNER, "XNAT_PASS": PASSWORD})
