"""Name the series of a session: which images a scan stands for, and the number of its run.

A series is a scan with a name or, of a field map, the two scans that a scanner makes of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from xnatfs.rest.models import Scan, natural
from xnatfs.tree.bids.rules.guess import is_like_localizer
from xnatfs.tree.bids.rules.images import DISCARDED, Named, Reasons, Sidecars, StoredImage, tell_apart
from xnatfs.tree.bids.rules.maps import MapLine
from xnatfs.tree.bids.rules.names import COUNTED_RUN, BidsName

# The images of a field map by two gradient echoes, which come as several images of one or two scans.
GRADIENT_ECHO = frozenset({"magnitude", "magnitude1", "magnitude2", "phasediff", "phase1", "phase2"})
# The label of `dir-` by the axis and the sign of the phase encoding, in the usual orientation of the image.
_DIRECTIONS = {"j": "PA", "j-": "AP", "i": "LR", "i-": "RL", "k": "IS", "k-": "SI"}


MappedScan = tuple[Scan, MapLine, Sequence[StoredImage]]
NamedImages = tuple[Scan, BidsName, Sequence[StoredImage]]


@dataclass(frozen=True)
class NamedSeries:
    """Images of one name.

    Attributes:
        scan: The scan, or the first one.
        name: What all images have in common, without subject and session.
        images: Those that are shown, with their own names; empty if the scan has none, but is counted.
        line: What named it; None for the files' own names.
    """

    scan: Scan
    name: BidsName
    images: Named = field(default_factory=list)
    line: MapLine | None = None


def with_direction(name: BidsName, images: Sequence[StoredImage], sidecars: Sidecars) -> BidsName:
    """Return the name of a spin-echo field map with its `dir-`, if the sidecar states the direction."""
    if name.suffix != "epi" or name.get("dir") or not images:
        return name
    return name.having(dir=_DIRECTIONS.get(str(sidecars.find(images[0]).get("PhaseEncodingDirection")), ""))


def pair_field_maps(found: Iterable[MappedScan], sidecars: Sidecars) -> tuple[list[NamedSeries], Reasons]:
    """Join scans that a map calls by a name of a gradient-echo field map to whole field maps.

    Both scans of a field map have the same series description, and so the same line of the map: which image is which
    follows from the sidecars. A scan with a phase image belongs to the magnitudes of the scan before it. Scans without
    images, which may be converted later, count as pairs.

    Args:
        found: The scans, each with its line and its images.
        sidecars: The sidecars.

    Returns:
        A series for each field map, and the images that are not shown.
    """
    pending: dict[str, _GradientEchoes] = {}
    maps: list[_GradientEchoes] = []
    for scan, line, images in sorted(found, key=lambda each: natural(each[0].id)):
        phases = [image for image in images if sidecars.is_phase(image)]
        magnitudes = [image for image in images if image not in phases]
        key = group_of(line.parse())
        current = pending.get(key)
        if current is None or current.phases or magnitudes or (not images and current.scans > 1):
            current = pending[key] = _GradientEchoes(scan, line)
            maps.append(current)
        current.scans += 1
        current.magnitudes += magnitudes
        current.phases += phases
    left: Reasons = []
    return [each.named(sidecars, left) for each in maps], left


@dataclass
class _GradientEchoes:
    """The images of one gradient-echo field map."""

    scan: Scan
    line: MapLine
    scans: int = 0
    magnitudes: list[StoredImage] = field(default_factory=list)
    phases: list[StoredImage] = field(default_factory=list)

    def named(self, sidecars: Sidecars, left: Reasons) -> NamedSeries:
        """Return the series, and add to `left` the images that are not shown."""
        name = self.line.parse()
        series = NamedSeries(self.scan, name, [], self.line)
        pairs = ((self.magnitudes, "magnitude"), (self.phases, "phase"))
        for images, kind in pairs:
            ordered = _by_echo_time(images, sidecars)
            if ordered is None:
                reason = "is one of several images of a field map, whose sidecars do not tell them apart"
                left += [(image, reason) for image in images]
                continue
            suffixes = [f"{kind}1", f"{kind}2"][: len(ordered)]
            if len(ordered) == 1 and not (self.magnitudes and self.phases):
                suffixes = [name.suffix]  # alone, it is what the map says
            elif suffixes == ["phase1"]:
                suffixes = ["phasediff"]
            series.images.extend((image, name.called(suffix)) for image, suffix in zip(ordered, suffixes, strict=True))
        return series


def _by_echo_time(images: Sequence[StoredImage], sidecars: Sidecars) -> list[StoredImage] | None:
    """Return one or two images in the order of their echo times; None if these are not distinct, or are more."""
    if len(images) < 2:
        return list(images)
    times = [sidecars.echo_time(image) for image in images]
    if len(images) > 2 or None in times or len(set(times)) < len(times):
        return None
    return [image for _, image in sorted(zip(times, images, strict=True), key=lambda pair: pair[0] or 0.0)]


def group_of(name: BidsName) -> str:
    """Return the common part of names that differ in run, echo and part only."""
    suffix = "phasediff" if name.suffix in GRADIENT_ECHO else name.suffix
    return replace(name, suffix=suffix).having(run="", echo="", part="").stem


def number_runs(series: Sequence[NamedSeries]) -> list[NamedSeries]:
    """Assign numbers to the runs of series with equal names, in the natural order of their scans.

    All of them count, whether they are shown or not: so nothing is renamed when one is marked as unusable, or is
    converted later. A number that a name states itself stays.
    """
    groups: dict[str, list[NamedSeries]] = {}
    for each in sorted(series, key=lambda each: natural(each.scan.id)):
        groups.setdefault(each.name.having(run="", echo="", part="").stem, []).append(each)
    numbered = []
    for found in groups.values():
        for place, each in enumerate(found, 1):
            stated = each.name.get("run")
            counted = f"{place:02d}" if len(found) > 1 or stated == COUNTED_RUN else ""
            run = counted if stated == COUNTED_RUN else stated or counted
            images = [(image, name.having(run=run)) for image, name in each.images]
            numbered.append(replace(each, name=each.name.having(run=run), images=images))
    return numbered


def name_images(
    scan: Scan, name: BidsName, line: MapLine | None, images: Sequence[StoredImage], sidecars: Sidecars
) -> tuple[NamedSeries, Reasons]:
    """Return the series of a scan with a name, and its images that are not shown.

    Args:
        scan: The scan.
        name: The name of its images.
        line: The line of the map that names the scan; None without one.
        images: Its images.
        sidecars: The sidecars that were read so far; it collects those that are missing.
    """
    if len(images) > 1:
        named, left = tell_apart(name, images, sidecars)
    elif images and is_like_localizer(scan) and sidecars.is_discarded(images[0]):
        named, left = [], [(images[0], DISCARDED)]
    else:
        named, left = [(image, name) for image in images], []
    return NamedSeries(scan, name, named, line), left
