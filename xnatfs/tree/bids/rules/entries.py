"""Define the parts of a session's plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from xnatfs.rest.models import Scan
from xnatfs.tree.bids.rules.images import StoredFile, StoredImage
from xnatfs.tree.bids.rules.maps import MapLine
from xnatfs.tree.bids.rules.names import BidsName


@dataclass(frozen=True, slots=True)
class Rules:
    """The options of the view that decide about names."""

    any_quality: bool = False  # show scans that are marked as unusable
    use_notes: bool = False  # tags in notes name scans
    plain_targets: bool = False  # IntendedFor as plain paths, for older programs


class LeftOut(NamedTuple):
    """A scan or a file that is not shown, or is shown with a doubt."""

    scan: str
    file: str  # '' for the whole scan
    reason: str
    line: str = ""  # of the map, that would show it


@dataclass
class ShownImage:
    """An image that is shown, with its complete name."""

    scan: Scan
    image: StoredImage
    name: BidsName
    line: MapLine | None

    @property
    def path(self) -> str:
        """Return its path within the session's folder."""
        return self.name.path + self.image.extension


@dataclass
class SessionPlan:
    """The files of a session's folder, by their paths in it."""

    entries: list[ShownImage] = field(default_factory=list)
    files: dict[str, StoredFile] = field(default_factory=dict)
    by_type: dict[str, dict[str, StoredFile]] = field(default_factory=dict)  # the same by folder and name
    metadata: dict[str, dict[str, object]] = field(default_factory=dict)  # of JSON files to be generated, by stem
    left_out: list[LeftOut] = field(default_factory=list)
    wanted: list[StoredFile] = field(default_factory=list)  # sidecars without which it is not the final plan

    def __len__(self) -> int:
        return len(self.files) + len(self.metadata) + len(self.left_out) + 1


class ScanFiles(NamedTuple):
    """A scan and the files that may be shown of it."""

    scan: Scan
    files: Sequence[StoredFile]
