"""Plan a session: name the files that are shown, and give a reason for each of the others.

The plan depends on what the server lists, on the map and on sidecars, and not on the order of any rows. No two files
get one name, also where only the case differs. A name that two files should have is given to neither.
"""

from collections.abc import Mapping, Sequence

from xnatfs.common.errors import BadReply
from xnatfs.rest.models import Scan, natural
from xnatfs.tree.bids.rules.entries import LeftOut, Rules, ScanFiles, SessionPlan, ShownImage
from xnatfs.tree.bids.rules.guess import map_line
from xnatfs.tree.bids.rules.images import Reasons, Sidecar, Sidecars, StoredFile, StoredImage, find_images
from xnatfs.tree.bids.rules.maps import BidsMap, MapLine, noted, reproin
from xnatfs.tree.bids.rules.metadata import assign_field_maps, keep_complete, name_tasks
from xnatfs.tree.bids.rules.names import BidsName, InvalidName, accepts_extension, is_image
from xnatfs.tree.bids.rules.others import kind_of_name
from xnatfs.tree.bids.rules.series import (
    GRADIENT_ECHO,
    MappedScan,
    NamedImages,
    NamedSeries,
    group_of,
    name_images,
    number_runs,
    pair_field_maps,
    with_direction,
)

# Images of one scan that may differ by echo and part: 32 echoes with magnitude and phase. To tell images apart takes
# their sidecars, and a scan with an image for each slice has thousands.
MOST_IMAGES = 64
# Scans that a clash of names is reported with.
MOST_NAMED_SCANS = 4


class SessionPlanner:
    """Plan one session.

    Args:
        subject: The label of the subject's folder.
        session: The label of the session's folder.
        bids_map: The lines that apply.
        rules: The options.
        sidecars: The fields of the sidecars that are known.
    """

    def __init__(
        self, subject: str, session: str, bids_map: BidsMap, rules: Rules, sidecars: Mapping[StoredFile, Sidecar]
    ) -> None:
        self._subject = subject
        self._session = session
        self._map = bids_map
        self._rules = rules
        self.sidecars = Sidecars(sidecars)
        self.plan = SessionPlan()

    def make(self, scans: Sequence[ScanFiles]) -> SessionPlan:
        """Return the plan; if it wants sidecars, it is to be made again with these. Raises BadReply."""
        unique = {each.scan.id: each for each in scans}
        ordered = sorted(unique.values(), key=lambda each: natural(each.scan.id))
        series, maps, own_maps = list[NamedSeries](), list[MappedScan](), list[NamedImages]()
        for scan, files in ordered:
            images, odd = find_images(scan.id, files)
            for file, reason in odd:
                self._leave(scan, file.name, reason)
            found = self._own_names(images)
            if max((len(group) for _, group in found), default=len(images)) > MOST_IMAGES:
                self._leave(scan, "", f"has {len(images)} images, too many to be told apart")
                images, found = [], []
            line = self._line(scan, images, found)
            if line is not None and not any(is_image(file.name) for file in files):
                self._leave(scan, "", "has no NIfTI file")
            if found:
                own_maps += [(scan, name, group) for name, group in found if name.suffix in GRADIENT_ECHO]
                others = [(name, group) for name, group in found if name.suffix not in GRADIENT_ECHO]
                series += [self._named(scan, name, None, group) for name, group in others]
            elif line is not None and (name := self._parsed(scan, images, line)) is not None:
                if name.suffix in GRADIENT_ECHO:
                    maps.append((scan, line, images))
                else:
                    series.append(self._named(scan, name, line, images))
        if any(len(group) > 1 for _, _, group in own_maps):  # one name for both scans and all images of a field map
            maps += [(scan, line_of(name), group) for scan, name, group in own_maps]
        else:
            series += [self._named(scan, name, None, group) for scan, name, group in own_maps]
        paired, left = pair_field_maps(maps, self.sidecars)
        self._leave_images(left)
        self._enter(number_runs([*series, *paired]), {id: each.scan for id, each in unique.items()})
        self.plan.wanted = list(self.sidecars.wanted)
        return self.plan

    # -- the names of scans --------------------------------------------------------------------------------------

    def _own_names(self, images: Sequence[StoredImage]) -> list[tuple[BidsName, list[StoredImage]]]:
        """Return the names that a scan's own files state, each with its images; none if one of them is no BIDS name."""
        own = [(image, image.own_name()) for image in images if image.sidecar is not None]
        if not own or any(name is None for _, name in own):
            return []
        groups: dict[str, list[tuple[StoredImage, BidsName]]] = {}
        for image, name in own:
            assert name is not None
            bare = name.having(sub="", ses="")
            groups.setdefault(bare.having(echo="", part="").stem, []).append((image, bare))
        self._leave_images([(image, "has no sidecar") for image in images if image.sidecar is None])
        return [
            (
                members[0][1] if len(members) == 1 else members[0][1].having(echo="", part=""),
                [each[0] for each in members],
            )
            for members in groups.values()
        ]

    def _line(
        self, scan: Scan, images: Sequence[StoredImage], own: Sequence[tuple[BidsName, object]]
    ) -> MapLine | None:
        """Return the line of the map that names a scan, or what states a name in its place.

        Raises BadReply if a map that is wrong could name it.
        """
        if images and not own and self._map.wrong and self._map.find(scan) is None:
            raise BadReply(f"{self._map.wrong}, and nothing else names scan {scan.id}")
        notes = noted(scan) if self._rules.use_notes else None
        lines = [line for line in (self._map.find(scan), reproin(scan), notes) if line is not None]
        stated = {_bare(name) for name, _ in own[:1]} | {_group_of_line(line) for line in lines}
        if len(stated) > 1 and images:
            names = [f"{name.stem} by its files" for name, _ in own[:1]]
            names += [f"{line.bidsname} by the {line.source}" for line in lines]
            self._leave(scan, "", f"is shown, but named differently: {', '.join(names)}")
        if not lines and not own and images:
            description = scan.series_description or scan.type
            self._leave(scan, "", f"no map has a line for {description!r}", map_line(scan))
        return lines[0] if lines else None

    def _parsed(self, scan: Scan, images: Sequence[StoredImage], line: MapLine) -> BidsName | None:
        try:
            return line.parse()
        except InvalidName as error:
            if images:
                reason = kind_of_name(line.bidsname) or str(error)
                self._leave(scan, "", f"{line.bidsname!r} of the {line.source}: {reason}", map_line(scan))
            return None

    def _named(self, scan: Scan, name: BidsName, line: MapLine | None, images: Sequence[StoredImage]) -> NamedSeries:
        name = with_direction(name, images, self.sidecars)
        made, left = name_images(scan, name, line, images, self.sidecars)
        self._leave_images(left)
        return made

    # -- complete names ------------------------------------------------------------------------------------------

    def _enter(self, series: Sequence[NamedSeries], scans: Mapping[str, Scan]) -> None:
        """Put the images of all series into the plan, unless a rule keeps one out."""
        by_path: dict[str, list[ShownImage]] = {}
        for each in series:
            for image, name in each.images:
                entry = self._complete(each, image, name, scans)
                if entry is not None:
                    by_path.setdefault(entry.name.path.lower(), []).append(entry)
        for entries in by_path.values():
            if len(entries) > 1:
                ids = sorted({each.scan.id for each in entries}, key=natural)[:MOST_NAMED_SCANS]
                for entry in entries:
                    others = ", ".join([id for id in ids if id != entry.scan.id] or ids)
                    reason = f"{entry.name.stem} would be the name of an image of scan {others} as well"
                    self._leave(entry.scan, entry.image.file.name, reason)
        unique = sorted((each[0] for each in by_path.values() if len(each) == 1), key=lambda each: natural(each.path))
        self.plan.entries = keep_complete(unique, self.sidecars, self.plan)
        name_tasks(self.plan)
        assign_field_maps(self.plan, self.sidecars, plain_paths=self._rules.plain_targets)
        for entry in self.plan.entries:
            self._show(entry)

    def _complete(
        self, series: NamedSeries, image: StoredImage, name: BidsName, scans: Mapping[str, Scan]
    ) -> ShownImage | None:
        scan = scans[image.scan]
        if scan.quality == "unusable" and not self._rules.any_quality:
            self._leave(scan, image.file.name, "the scan is marked as unusable")
            return None
        if name.suffix == "epi" and not name.get("dir"):
            self._leave(scan, image.file.name, "dir- is missing, and no sidecar states PhaseEncodingDirection")
            return None
        try:
            complete = name.having(sub=self._subject, ses=self._session).resolved()
        except InvalidName as error:
            self._leave(scan, image.file.name, f"{name.stem}: {error}")
            return None
        if complete.suffix == "dwi" and len(image.gradients) < 2:
            self._leave(scan, image.file.name, "lacks .bval or .bvec")
            return None
        return ShownImage(scan, image, complete, series.line)

    def _show(self, entry: ShownImage) -> None:
        image, path = entry.image, entry.name.path
        found = {image.extension: image.file, ".json": image.sidecar, **image.gradients}
        for extension, file in found.items():
            if file is not None and accepts_extension(entry.name, extension):
                self.plan.files[path + extension] = file
                self.plan.by_type.setdefault(entry.name.datatype, {})[entry.name.stem + extension] = file

    def _leave_images(self, left: Reasons) -> None:
        for image, reason in left:
            self.plan.left_out.append(LeftOut(image.scan, image.file.name, reason))

    def _leave(self, scan: Scan, file: str, reason: str, line: str = "") -> None:
        self.plan.left_out.append(LeftOut(scan.id, file, reason, line))


def line_of(name: BidsName) -> MapLine:
    """Return the line of a map that stands for the names of files."""
    return MapLine(name.having(run="", echo="", part="").stem, "names of the files")


def _bare(name: BidsName) -> str:
    return group_of(name.having(dir=""))


def _group_of_line(line: MapLine) -> str:
    try:
        return _bare(line.parse())
    except InvalidName:
        return line.bidsname
