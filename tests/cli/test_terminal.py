"""Look at a real terminal, which tmux emulates, of 80 and of 50 columns: a live view, tables and bars."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.cli.test_manners import HeldReplies
from tests.fuse.test_mount import wait_for
from tests.support.commanding import LABEL, OWNER, PASSWORD, SESSION, Shell, shell
from tests.support.mounting import Mount, mounting, run

ROWS = 30
BIG = bytes(range(256)) * 40_000

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="takes tmux, which 'scripts/setup test' installs")


class Screen:
    """A shell on a terminal of tmux."""

    def __init__(self, user: Shell, columns: int) -> None:
        self._directory = tempfile.mkdtemp(prefix="tmux")  # short: it is part of the name of a socket
        self.columns = columns
        words = [f"{name}={value}" for name, value in {**user.environment(), "PS1": "$ "}.items() if name != "TERM"]
        program = ("env", "-i", "TERM=screen", *words, "sh", "-i")
        self._tmux("-f", "/dev/null", "new-session", "-d", "-c", user.home, "-x", columns, "-y", ROWS, *program)
        self.wait_for(r"^\$")

    def _tmux(self, *words: object) -> str:
        done = run("tmux", "-u", "-S", f"{self._directory}/socket", *map(str, words))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, text: str) -> None:
        """Type a line, or one of the keys that tmux names, such as C-c."""
        self._tmux("send-keys", *(["-l", f"{text}\n"] if " " in text else [text]))

    @property
    def lines(self) -> list[str]:
        """Return what the terminal shows, without blanks at the ends."""
        return [line.rstrip() for line in self._tmux("capture-pane", "-p").rstrip().splitlines()]

    def wait_for(self, pattern: str) -> list[str]:
        """Wait until a line matches, and return all of them."""
        shown: list[str] = []

        def is_there() -> bool:
            shown[:] = self.lines
            return any(re.search(pattern, line) for line in shown)

        assert wait_for(is_there), "\n".join(shown)
        return shown

    def run(self, command: str) -> list[str]:
        """Run a command, and return what it shows."""
        self.type(f"clear; {command}; echo done")
        return self.wait_for("^done$")[:-2]

    def close(self) -> None:
        subprocess.run(["tmux", "-S", f"{self._directory}/socket", "kill-server"], capture_output=True)
        shutil.rmtree(self._directory)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp("terminal")
    (directory / "home").mkdir()
    with shell(directory / "home") as made:
        resource = made.app.archive.resource(made.session().resources, "BIG", "TXT")
        made.app.archive.file(resource, "big.bin", BIG)
        made.config(f"default_profile: here\nprofiles:\n  here: {{url: '{made.url}', default_project: MYPROJECT}}\n")
        yield made


@pytest.fixture(params=[80, 50])
def screen(request: pytest.FixtureRequest, user: Shell) -> Iterator[Screen]:
    made = Screen(user, request.param)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def mount(user: Shell) -> Iterator[Mount]:
    with mounting(user.url, user.home.parent, user=OWNER, password=PASSWORD) as made:
        yield made


@pytest.mark.fuse
def test_a_mount_is_watched_during_a_copy(user, mount, screen):
    path = f"projects/MYPROJECT/SUB001/{LABEL}/resources/BIG/big.bin"
    held = HeldReplies(user, "/files/big.bin", passing=1)  # until then, open(2) waits
    try:
        screen.run(f"xnatfs cache clear '{mount.path}'")
        screen.type(f"(cat '{mount.path}/{path}' | wc -c >copied) 2>/dev/null &")
        assert held.met.wait(60)
        screen.type(f"xnatfs status --watch '{mount.path}'")
        shown = screen.wait_for("fetching")
        assert re.fullmatch(r"xnatfs status, \d\d:\d\d:\d\d, Ctrl-C ends it", shown[0])
        assert "".join(shown).count(str(mount.path)) == 1
        others = [line for line in shown if line not in str(mount.path)]  # a long path takes two lines
        assert all(re.match(r"xnatfs status|  [a-z-]+ +\S| {13}\S", line) for line in others), shown
        assert "10% of 9.8 MiB" in " ".join(line.strip() for line in shown)
        held.free.set()
        screen.wait_for(r"open +0 files")
        screen.type("C-c")
        shown = screen.wait_for(r"^\$ xnatfs status --watch")
        assert not [line for line in shown if "fetching" in line], "the screen is as it was before"
        assert (user.home / "copied").read_text().strip() == str(len(BIG))
    finally:
        held.end()


TABLES = {
    80: """
ID           Label                Subject  Date        Modality
XNAT_E00001  SUB001_MR_20240115   SUB001   2024-01-15  MR
XNAT_E00002  SUB001_PET_20230101  SUB001   2023-01-01  PET
XNAT_E00003  SUB002_CT            SUB002   2024-01-02  CT
XNAT_E00004  SUB002_EEG           SUB002   2024-01-02  EEG
XNAT_E00005  XNAT_EEG_01          SUB002   2024-01-02  MR
""",
    50: """
ID           Label     Subject  Date      Modality
XNAT_E00001  SUB001_…  SUB001   2024-01…  MR
XNAT_E00002  SUB001_…  SUB001   2023-01…  PET
XNAT_E00003  SUB002_…  SUB002   2024-01…  CT
XNAT_E00004  SUB002_…  SUB002   2024-01…  EEG
XNAT_E00005  XNAT_EE…  SUB002   2024-01…  MR
Words are cut to fit; -o wide prints them whole
""",
}


def test_a_table_fits(screen):
    shown = screen.run("xnatctl session list")
    assert shown == TABLES[screen.columns].strip().splitlines()


def test_a_bar_has_a_line_of_its_own_and_leaves_none(user, screen):
    held = HeldReplies(user, r"/resources/[^/]+/files", passing=1)  # the bar stays until it is released
    try:
        screen.type(f"clear; rm -rf out; xnatctl session download -E {SESSION} --session-resources --out out")
        shown = screen.wait_for("/19 files")
        bar = next(line for line in shown if "/19 files" in line)
        assert re.fullmatch(r"downloading \d+/19 files( \S+)? [\d.]+( \w+)?/9.8 MiB( [\d.]+ \w+/s( \S+)?)?", bar), bar
        assert len(shown) <= 2
        assert held.met.wait(60)
        held.free.set()
        shown = screen.wait_for("^Downloaded 19 of 19 files to out/")
        assert not [line for line in shown if "downloading" in line]
    finally:
        held.end()
