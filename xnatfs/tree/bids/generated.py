"""Make the files of a dataset that no server stores: from listings alone, and the same bytes from the same listings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from xnatfs.tree.bids.rules.names import BIDS_VERSION

# What a table shows for a value that is not there, as BIDS wants it.
ABSENT = "n/a"


def json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Return a TSV file. Tabs and line breaks in cells become blanks, and nothing is quoted, as BIDS has it."""
    lines = ["\t".join(columns), *("\t".join(_cell(cell) for cell in row) for row in rows)]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _cell(text: str) -> str:
    return " ".join(text.split()) or ABSENT


def dataset_description(name: str, url: str, authors: Sequence[str]) -> bytes:
    try:
        ours = version("xnatfs")
    except PackageNotFoundError:  # run from a folder that is not installed
        ours = ""
    described: dict[str, object] = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": "raw"}
    if authors:
        described["Authors"] = list(authors)
    described["GeneratedBy"] = [{"Name": "xnatfs"} | ({"Version": ours} if ours else {})]
    described["SourceDatasets"] = [{"URL": url}]
    return json_bytes(described)


def readme(project: str, name: str, url: str) -> bytes:
    title = f"{project}: {name}" if name and name != project else project
    return f"""{title}
{"=" * min(len(title), 120)}

This is the project {project} of {url}, shown under BIDS names by xnatfs.
Images, sidecars and gradient tables are the files of the server, byte for byte; nothing was converted or changed.
The other files are made from its listings.

sourcedata/xnatfs/map.tsv has the address on the server of each file, sourcedata/xnatfs/left-out.tsv what is not shown,
and why; `xnatctl bids report {project}` prints the same.
""".encode("utf-8", "backslashreplace")


PARTICIPANTS = {
    "participant_id": {"Description": "The label of the subject in the project, reduced to letters and digits"},
    "sex": {"Description": "The gender that the server states", "Levels": {"M": "male", "F": "female", "O": "other"}},
    "group": {"Description": "The group that the server states"},
    "age": {"Description": "The age that the server states", "Units": "year"},
    "handedness": {"Description": "As the server states it", "Levels": {"R": "right", "L": "left", "A": "both"}},
    "xnat_subject_id": {"Description": "The accession ID of the subject on the server"},
    "xnat_label": {"Description": "The label of the subject in the project"},
}
SCAN_DESCRIPTIONS = {
    "filename": {"Description": "The image, relative to this file"},
    "xnat_session_id": {"Description": "The accession ID of the session on the server"},
    "xnat_scan_id": {"Description": "The ID of the scan in its session"},
    "quality": {"Description": "The quality of the scan as it is marked on the server"},
}
SESSIONS = {
    "session_id": {"Description": "The label of the session in the project, reduced to letters and digits"},
    "xnat_session_id": {"Description": "The accession ID of the session on the server"},
    "acq_time": {"Description": "The day of the acquisition"},
}
MAP_COLUMNS = ("path", "uri", "digest")


def described(columns: Mapping[str, object], keys: Iterable[str]) -> bytes:
    """Return the JSON file that describes the columns of a table."""
    return json_bytes({key: columns[key] for key in keys})
