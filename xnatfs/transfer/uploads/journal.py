"""Record what an upload has sent, beside other state of the user, so that a run after a crash can resume it.

A batch is new, or sent (the server may have it), or done (the server has confirmed it). The journal is replaced as a
whole each time; it is removed when the server is seen to hold the whole upload.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from xnatfs.common.files import write_private
from xnatfs.common.sanitize import loads
from xnatfs.transfer.uploads.dicom_files import Image
from xnatfs.transfer.uploads.request_bodies import UPLOAD_BATCH_BYTES

VERSION = 1
# Bytes of the first batch, which is sent alone: they show whether the server accepts it, and the others wait for it.
FIRST_BATCH_BYTES = 4 * 2**20
NEW, SENT, DONE = "new", "sent", "done"
# The form of a batch: packed, a zip whose length is known in advance, or file by file.
Mode = Literal["tar", "zip", "sized zip", "gradual"]


def state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "xnatfs"


@dataclass
class Batch:
    """Files that are sent in one request, by their positions among the images."""

    first: int
    count: int
    state: str = NEW
    uris: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def batches_of(images: Sequence[Image], limit: int) -> list[Batch]:
    """Group consecutive images into batches of at most `limit` bytes, or of one image that is longer.

    The first one, for which all others wait, has at most FIRST_BATCH_BYTES.
    """
    made: list[Batch] = []
    size = 0
    for place, image in enumerate(images):
        if not made or size + image.size > (limit if len(made) > 1 else min(limit, FIRST_BATCH_BYTES)):
            made.append(Batch(place, 0))
            size = 0
        made[-1].count += 1
        size += image.size
    return made


class Journal:
    """Journal of one upload, of these images to this target."""

    def __init__(self, target: Sequence[str], images: Sequence[Image]) -> None:
        name = hashlib.sha256("\n".join(target).encode()).hexdigest()[:32]
        self.path = state_home() / "uploads" / f"{name}.json"
        self._images = _fingerprint(images)
        self.batches = batches_of(images, UPLOAD_BATCH_BYTES)
        self.resumed = False
        # Number of files of sessions of the label before the first batch, by path; None where the server did not know.
        self.before: dict[str, int | None] = {}
        self.mode: Mode | None = None  # the form that the server accepts, if it refused the requested one

    def resume(self) -> bool:
        """Resume an earlier run from its journal, if that sent the same images; return whether it had sent any."""
        try:
            cells: Any = loads(self.path.read_bytes())
            if cells["version"] != VERSION or cells["images"] != self._images:
                return False
            self.batches = [Batch(**batch) for batch in cells["batches"]]
            before = cells.get("before")
            self.before = {str(place): count and int(count) for place, count in before.items()} if before else {}
            mode = cells.get("mode")
            self.mode = mode if mode in get_args(Mode) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        self.resumed = any(batch.state != NEW for batch in self.batches)
        return self.resumed

    def write(self) -> None:
        """Write the journal to disk. Raises OSError."""
        batches = [asdict(batch) for batch in self.batches]
        cells: dict[str, Any] = {"version": VERSION, "images": self._images, "mode": self.mode, "batches": batches}
        cells["before"] = self.before
        write_private(self.path, json.dumps(cells))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def count(self, *states: str) -> int:
        """Return how many files are in batches of these states."""
        return sum(batch.count for batch in self.batches if batch.state in states)

    def places(self) -> list[str]:
        """Return the URIs that the server has reported, each once."""
        return list(dict.fromkeys(uri for batch in self.batches for uri in batch.uris))

    def digests(self) -> set[str]:
        return {digest for batch in self.batches for digest in batch.digests}


def _fingerprint(images: Sequence[Image]) -> str:
    lines = (f"{image.name}\n{image.size}\n{image.modified}\n{image.instance}\n" for image in images)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
