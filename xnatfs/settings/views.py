"""Define ViewOptions: the directories at the top of a mount, and the part of the archive that they show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

# The directories at the top, in their order, and those of them that a mount has if it is not told otherwise.
ALL_VIEWS = ("projects", "experiments", "subjects", "prearchive", "bids", "archive")
DEFAULT_VIEWS = ALL_VIEWS[:-1]
# Views in which the files of the archive have a name each.
VIEWS_OF_FILES = frozenset({"projects", "bids", "archive"})
# In a list of qualities it stands for scans that have none.
NO_QUALITY = "none"

# Of the view bids: show days of acquisition; show age and handedness; take names from tags in notes; cut the subject's
# label from that of the session; write paths relative to the subject in IntendedFor.
BIDS_OPTIONS = ("dates", "demographics", "notes", "ses=suffix", "intendedfor=path")
# Columns of the report on what bids/ leaves out, in the mount's table and in that of xnatctl.
LEFT_OUT_COLUMNS = ("subject", "session", "scan", "file", "reason", "map_line")

Patterns = tuple[str, ...]  # names, in which '*' and '?' stand for any characters; empty: everything


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """Options that choose what a mount shows. The filters hold in every view; they hide names and change none.

    Attributes:
        shown: The names of the views.
        projects: IDs of projects.
        scan_types: Types of scans.
        qualities: Qualities of scans.
        resources: Labels of resources, at every level.
        hidden: Labels of resources that are not shown.
        bids_map: The path of a map of BIDS names, which overrides the server's; '' without one.
        bids_quality: The qualities of scans in `bids`: "usable" or "any".
        bids_options: Further options of `bids`, of BIDS_OPTIONS.
        links: How many names a file of the archive may have.
    """

    shown: tuple[str, ...] = DEFAULT_VIEWS
    projects: Patterns = ()
    scan_types: Patterns = ()
    qualities: Patterns = ()
    resources: Patterns = ()
    hidden: Patterns = ()
    bids_map: str = ""
    bids_quality: str = "usable"
    bids_options: tuple[str, ...] = ()
    links: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "links", max(1, len(VIEWS_OF_FILES.intersection(self.shown))))

    def shows_project(self, project: str) -> bool:
        return not self.projects or _matches(project, self.projects)

    def shows_scan(self, scan_type: str, quality: str) -> bool:
        if self.scan_types and not _matches(scan_type, self.scan_types):
            return False
        return not self.qualities or _matches(quality or NO_QUALITY, self.qualities)

    def shows_resource(self, label: str) -> bool:
        if self.resources and not _matches(label, self.resources):
            return False
        return not (self.hidden and _matches(label, self.hidden))


def _matches(text: str, patterns: Sequence[str]) -> bool:
    return _compiled(tuple(patterns)).fullmatch(text) is not None


@lru_cache
def _compiled(patterns: Patterns) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    texts = ("".join(wild.get(each, re.escape(each)) for each in pattern) for pattern in patterns)
    return re.compile("|".join(texts), re.DOTALL)
