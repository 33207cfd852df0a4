"""Find the images of a scan among its files, and tell several images of one scan apart."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from xnatfs.rest.models import natural
from xnatfs.tree.bids.rules.names import IMAGE_EXTENSIONS, BidsName, InvalidName, split_extension
from xnatfs.tree.bids.rules.others import kind_of

Sidecar = Mapping[str, Any]  # the fields of a JSON file that lies beside an image
Reasons = list[tuple["StoredImage", str]]  # why images are not shown
Named = list[tuple["StoredImage", BidsName]]

DISCARDED = "is a localizer or derived, by dcm2niix"  # as its field BidsGuess states
# The end of a file name by which dcm2niix tells images of one series apart.
_POSTFIX = re.compile(r"(?:_(?:e\d+|ph|real|imaginary|Eq_\d+|i\d{5}|ROI\d+|t\d{2,})[a-z]?)*$")
# Parts of it that do not identify the image.
_OBSCURE = re.compile(r"_(?:Eq_\d+|i\d{5}|ROI\d+|t\d{2,})")
_PART_TOKENS = {"_ph": "phase", "_real": "real", "_imaginary": "imag"}
# Suffixes of which several echoes of one scan are numbered. The schema allows `echo` for others as well, where several
# images of a scan hardly ever differ by their echoes alone.
_MULTI_ECHO = frozenset({"bold", "cbv", "sbref", "MEGRE", "MESE", "T2starw"})


class StoredFile(NamedTuple):
    """A file of a scan's resources."""

    resource: str  # the ID
    path: str
    place: int  # in the listing of the resource
    size: int | None = None
    digest: str = ""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class StoredImage:
    """An image and the files of the same stem, from whichever resource of the scan."""

    scan: str  # the ID
    stem: str
    file: StoredFile
    extension: str
    sidecar: StoredFile | None = None
    gradients: Mapping[str, StoredFile] = field(default_factory=dict)  # .bval and .bvec

    @property
    def postfix(self) -> str:
        match = _POSTFIX.search(self.stem)
        return match[0] if match else ""

    def own_name(self) -> BidsName | None:
        """Return the BIDS name that the file has on the server, with its subject; None if it has none."""
        try:
            name = BidsName.parse(self.stem)
        except InvalidName:
            return None
        return name if name.get("sub") else None


class Sidecars:
    """The sidecars that were read so far, and those that are wanted.

    Planning is done without I/O: it is repeated with what it wanted until it wants nothing more.
    """

    def __init__(self, known: Mapping[StoredFile, Sidecar]) -> None:
        self._known = known
        self.wanted: dict[StoredFile, None] = {}

    def find(self, image: StoredImage) -> Sidecar:
        """Return the fields of an image's sidecar; none where it has no sidecar, or one that is not known yet."""
        if image.sidecar is None:
            return {}
        if image.sidecar not in self._known:
            self.wanted[image.sidecar] = None
            return {}
        return self._known[image.sidecar]

    def is_phase(self, image: StoredImage) -> bool:
        if "_ph" in image.postfix:
            return True
        kinds = self.find(image).get("ImageType")
        return isinstance(kinds, list) and not {"P", "PHASE"}.isdisjoint(map(str, kinds))

    def echo_time(self, image: StoredImage) -> float | None:
        """Return the echo time in seconds, if the sidecar states a possible one."""
        time = self.find(image).get("EchoTime")
        return float(time) if isinstance(time, int | float) and not isinstance(time, bool) and 0 < time < 10 else None

    def is_discarded(self, image: StoredImage) -> bool:
        """Return whether dcm2niix classified the image as a localizer or as derived."""
        guess = self.find(image).get("BidsGuess")
        return isinstance(guess, list) and bool(guess) and str(guess[0]).lower() == "discard"


def find_images(scan: str, files: Iterable[StoredFile]) -> tuple[list[StoredImage], list[tuple[StoredFile, str]]]:
    """Join the files of one scan by their stems.

    Returns:
        The images in the natural order of their stems, and files that belong to none, with the reason.
    """
    by_stem: dict[str, dict[str, list[StoredFile]]] = {}
    left: list[tuple[StoredFile, str]] = []
    for file in sorted(set(files)):
        stem, extension = split_extension(file.name)
        if kind := kind_of(file.name):
            left.append((file, kind))
        elif extension:
            by_stem.setdefault(stem, {}).setdefault(extension, []).append(file)
        else:
            left.append((file, "is no NIfTI file, sidecar or gradient table"))
    images = []
    for stem in sorted(by_stem, key=natural):
        found = by_stem[stem]
        candidates = [(file, extension) for extension in IMAGE_EXTENSIONS for file in found.get(extension, ())]
        if len(candidates) > 1:
            left += [(file, f"{len(candidates)} images of the scan have the stem {stem}") for file, _ in candidates]
        elif candidates:
            single = {extension: each[0] for extension, each in found.items()}
            if unclear := [extension for extension, each in found.items() if not _are_copies(each)]:
                left.append((candidates[0][0], f"has several {unclear[0]} files of different contents"))
                continue
            gradients = {each: file for each, file in single.items() if each in (".bval", ".bvec")}
            images.append(StoredImage(scan, stem, *candidates[0], single.get(".json"), gradients))
        else:
            left += [(file, "no image has its name") for each in found.values() for file in each]
    return images, left


def _are_copies(files: Sequence[StoredFile]) -> bool:
    """Return whether files have one content, which two converters may have left in two resources of a scan."""
    return len(files) == 1 or len({file.digest for file in files}) == 1 and bool(files[0].digest)


def tell_apart(name: BidsName, images: Sequence[StoredImage], sidecars: Sidecars) -> tuple[Named, Reasons]:
    """Return the names of several images that one scan has, and the images that have none, with the reason.

    Echoes are numbered by their echo times, because scanners and converters number them wrongly; phase, real and
    imaginary images are marked as such. Images that differ in any other way are ambiguous: then no image is shown.
    """
    left: Reasons = [(image, "has no sidecar") for image in images if image.sidecar is None]
    rest = [image for image in images if image.sidecar is not None]
    left += [(image, DISCARDED) for image in rest if sidecars.is_discarded(image)]
    rest = [image for image in rest if not sidecars.is_discarded(image)]
    if len(rest) < 2:
        return [(image, name) for image in rest], left
    if any(_OBSCURE.search(image.postfix) for image in rest):
        reason = "is one of several images of the scan, whose names and sidecars do not tell them apart"
        return [], [*left, *((image, reason) for image in rest)]
    parts: dict[str, list[StoredImage]] = {}
    for image in rest:
        parts.setdefault(_part(image, sidecars), []).append(image)
    if all(len(found) == 1 for found in parts.values()):
        return [(found[0], name.having(part=part)) for part, found in parts.items()], left
    try:
        echoes = _echoes(name, list(parts.values()), sidecars)
    except InvalidName as error:
        return [], [*left, *((image, str(error)) for image in rest)]
    named = [(image, name.having(part=part, echo=echoes[image.stem])) for part in parts for image in parts[part]]
    return named, left


def _part(image: StoredImage, sidecars: Sidecars) -> str:
    own = image.own_name()
    if own is not None and own.get("part"):
        return "" if own.get("part") == "mag" else own.get("part")
    found = next((part for token, part in _PART_TOKENS.items() if token in image.postfix), "")
    return found or ("phase" if sidecars.is_phase(image) else "")


def _echoes(name: BidsName, groups: Sequence[Sequence[StoredImage]], sidecars: Sidecars) -> dict[str, str]:
    """Return the echo number of each image by stem. Raises InvalidName where the echo times do not give it."""
    if name.suffix not in _MULTI_ECHO or not name.allows("echo"):
        raise InvalidName(f"is one of several images of the scan, and {name.suffix} has no echoes to number")
    times = [[sidecars.echo_time(image) for image in images] for images in groups]
    distinct = {tuple(sorted(time for time in each if time is not None)) for each in times}
    if len(distinct) > 1 or any(None in each or len(set(each)) < len(each) for each in times):
        raise InvalidName("is one of several images of the scan, whose echo times do not tell them apart")
    (order,) = distinct
    numbers = [sidecars.find(image).get("EchoNumber") for images in groups for image in images]
    if max((number for number in numbers if isinstance(number, int)), default=0) > len(order):
        raise InvalidName(f"is one of {len(order)} echoes, but the sidecars number more: an echo is missing")
    return {
        image.stem: str(order.index(time) + 1)
        for images, each in zip(groups, times, strict=True)
        for image, time in zip(images, each, strict=True)
        if time is not None
    }
