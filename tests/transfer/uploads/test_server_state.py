"""Test what counts as arrived where a session had files before."""

import io

import trio

from xnatfs.rest.models import FileRow
from xnatfs.transfer.uploads import server_state
from xnatfs.transfer.uploads.dicom_files import Image
from xnatfs.transfer.uploads.import_service import Target
from xnatfs.transfer.uploads.journal import Journal


async def test_a_count_that_older_files_hide_is_waited_for_a_minute(monkeypatch, autojump_clock):
    """End a wait once the archived session has not grown for a minute, and not after the four hours of --wait."""
    files = [FileRow("1", f"{n}.dcm", 1, "", "", "", n) for n in range(3)]

    async def in_archive(xnat: object, target: object) -> tuple[str, list[FileRow]]:
        return "XNAT_E1", files

    async def nothing(*arguments: object) -> list[object]:
        return []

    monkeypatch.setattr(server_state, "_in_archive", in_archive)
    image = Image("1.dcm", 1, 0.0, "1.2.1", "1.2", io.BytesIO)
    journal = Journal(("x",), [image])
    journal.before = {server_state.ARCHIVE: None}
    outcome = server_state.Outcome()
    xnat = type("Xnat", (), {"prearchive": nothing})()
    looks: list[bool] = []
    for _ in range(30):
        if len(looks) == 4:
            files.append(FileRow("1", "later.dcm", 1, "", "", "", 3))
        looks.append(await server_state.look(xnat, Target("P", "S", "E", direct=True), outcome, journal))
        if looks[-1]:
            break
        await trio.sleep(10)
    assert looks == [False] * 10 + [True], "six pauses of ten seconds after the last file"
    assert (outcome.arrived, outcome.accession) == (None, "XNAT_E1")
