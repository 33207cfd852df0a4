"""Describe how XNAT releases answer, where they answer differently (XNAT REST contract 20).

Each difference is one field, named after what the server does; the code that answers asks the field, never the name of
a release. The defaults are those of 1.8.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Release:
    """One release of XNAT, as far as its REST API differs from the others."""

    name: str
    server: str = "Noelios-Restlet-Engine/1.1.10"  # the Server header
    firewall: bool = True  # refuses '%', ';' and empty or dot segments, which else reach XNAT
    decodes_blanks_only: bool = True  # a path with %20 or %2B is not compared as it was sent
    archive_parts: bool = True  # a resource addressed by number is named with its scan in an archive
    low_byte_names: bool = False  # a tar has the low byte of each character, else '?' for what is not ASCII
    long_tar_names: bool = True  # a tar holds names of more than 100 characters, else it ends before the first
    no_content: bool = False  # 204 for a change that is answered without a body

    # The import service.
    tar_imports: bool = True  # DICOM-zip takes a tar; else it answers 200 without a body, and stores nothing
    zip_labels: bool = True  # DICOM-zip honours project, subject and session; else the project of `dest` alone
    chunked_zips: bool = True  # a zip may come without Content-Length, here and as a file
    import_without_length: int = 500  # the status of a raw body that has none
    unknown_project: int = 404  # the status of SI into a project that is not there
    direct_archive: bool = True  # knows Direct-Archive
    commits_imports: bool = False  # builds the session after each DICOM-zip with `dest`
    tar_charset: str = "utf-8"  # of names in a tar that is extracted

    # The prearchive and its services.
    open_prearchive: bool = False  # a project's list is for everybody, and empty where there is no such project
    form_src: bool = True  # `src` may be in the form alone
    src_adds_up: bool = False  # `src` in the query and in the form are two sessions
    archive_without_src: int = 404
    archive_dest: Literal["ignored", "fails"] = "fails"
    archive_conflict: int = 500


XNAT_1_6 = Release(
    "1.6",
    server="Noelios-Restlet-Engine/1.1.6",
    firewall=False,
    decodes_blanks_only=False,
    archive_parts=False,
    low_byte_names=True,
    long_tar_names=False,
    tar_imports=False,
    zip_labels=False,
    chunked_zips=False,
    import_without_length=400,
    unknown_project=500,
    direct_archive=False,
    tar_charset="latin-1",
    open_prearchive=True,
    archive_without_src=500,
    archive_dest="ignored",
    archive_conflict=409,
)
XNAT_1_8 = Release("1.8")
XNAT_1_11 = Release(
    "1.11",
    server="Restlet-Framework/2.6",
    no_content=True,
    commits_imports=True,
    form_src=False,
    src_adds_up=True,
)

RELEASES = {release.name: release for release in (XNAT_1_6, XNAT_1_8, XNAT_1_11)}
