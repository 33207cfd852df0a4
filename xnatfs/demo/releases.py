"""Describe how XNAT releases answer, where they answer differently (XNAT REST contract 20).

Each difference is one field, named after what the server does; the code that answers asks the field, never the name of
a release. The defaults are those of 1.8.
"""

from dataclasses import dataclass


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


XNAT_1_6 = Release(
    "1.6",
    server="Noelios-Restlet-Engine/1.1.6",
    firewall=False,
    decodes_blanks_only=False,
    archive_parts=False,
    low_byte_names=True,
    long_tar_names=False,
)
XNAT_1_8 = Release("1.8")
XNAT_1_11 = Release("1.11", server="Restlet-Framework/2.6")

RELEASES = {release.name: release for release in (XNAT_1_6, XNAT_1_8, XNAT_1_11)}
