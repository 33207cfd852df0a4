"""Make the JSON that images lack: task names, the echo times of field maps, and the images that these are for.

It goes into files of their own, one level above the image (BIDS' inheritance principle): no sidecar is changed, and
what a sidecar states itself takes precedence.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xnatfs.rest.models import natural
from xnatfs.tree.bids.rules.entries import LeftOut, SessionPlan, ShownImage
from xnatfs.tree.bids.rules.images import Sidecars
from xnatfs.tree.bids.rules.names import BidsName, InvalidName
from xnatfs.tree.bids.rules.series import GRADIENT_ECHO

# Of the images that a field map is for.
_CORRECTED = frozenset({"func", "dwi", "perf"})
_CLOCK = re.compile(r"(?:.*T)?(\d\d):(\d\d):(\d\d(?:\.\d+)?)")

Order = tuple[object, ...]  # in which images were acquired


def keep_complete(entries: Sequence[ShownImage], sidecars: Sidecars, plan: SessionPlan) -> list[ShownImage]:
    """Return the entries without phase differences whose echo times are unknown; state those of the others."""
    by_path = {entry.name.path: entry for entry in entries}
    kept = []
    for entry in entries:
        if entry.name.suffix == "phasediff":
            own = sidecars.find(entry.image)
            pair = [by_path.get(entry.name.called(f"magnitude{number}").path) for number in (1, 2)]
            times = [sidecars.echo_time(each.image) if each is not None else None for each in pair]
            if None not in times:
                plan.metadata.setdefault(entry.name.stem, {}).update(EchoTime1=times[0], EchoTime2=times[1])
            elif not {"EchoTime1", "EchoTime2"} <= own.keys():
                reason = "the echo times of its two magnitude images are unknown"
                plan.left_out.append(LeftOut(entry.scan.id, entry.image.file.name, reason))
                continue
        kept.append(entry)
    return kept


def name_tasks(plan: SessionPlan) -> None:
    """State the task of each functional image, as its name has it."""
    for entry in plan.entries:
        if entry.name.datatype == "func":
            plan.metadata.setdefault(entry.name.stem, {})["TaskName"] = entry.name.get("task")


@dataclass
class _FieldMapUse:
    """The images of one field map, and what they are for."""

    identifier: str
    entries: list[ShownImage] = field(default_factory=list)
    targets: list[ShownImage] = field(default_factory=list)

    @property
    def patterns(self) -> list[str]:
        """Return the names of its targets that the map states."""
        return [target for entry in self.entries if entry.line for target in entry.line.targets]

    @property
    def intending(self) -> list[ShownImage]:
        """Return the images whose JSON names the targets: not the magnitudes of a phase difference."""
        return [each for each in self.entries if not each.name.suffix.startswith("magnitude")] or self.entries


def assign_field_maps(plan: SessionPlan, sidecars: Sidecars, *, plain_paths: bool = False) -> None:
    """State for each field map the images that it is for, and for these images the field map.

    A map may name them; else they are those acquired after it and before the next one, with the same shim settings
    where the sidecars have these. If several field maps could be meant, none is stated, and that is reported.
    """
    maps = _field_maps(plan.entries)
    targets = [entry for entry in plan.entries if entry.name.datatype in _CORRECTED]
    free = [each for each in maps if not each.patterns and not _states_targets(each, sidecars)]
    for each in maps:
        each.targets += [entry for entry in targets if any(_matches(entry.name, text) for text in each.patterns)]
    if free and targets:
        named = {entry.path for each in maps for entry in each.targets}
        rest = [entry for entry in targets if entry.path not in named]
        _match_by_time(free, rest, sidecars, plan)
    for each in maps:
        _state(each, plan, plain_paths=plain_paths)


def _field_maps(entries: Iterable[ShownImage]) -> list[_FieldMapUse]:
    """Group the images of field maps: those by gradient echoes, and pairs of opposite phase encoding."""
    found: dict[str, _FieldMapUse] = {}
    for entry in entries:
        name = entry.name
        if name.datatype != "fmap":
            continue
        if name.suffix in GRADIENT_ECHO or name.suffix == "fieldmap":
            bare = name.called("fieldmap")
        elif name.suffix == "epi":
            bare = name.having(dir="", part="")
        else:
            continue
        identifier = bare.having(sub="", ses="").stem.replace("-", "")
        found.setdefault(identifier, _FieldMapUse(identifier)).entries.append(entry)
    return [found[key] for key in sorted(found, key=natural)]


def _states_targets(found: _FieldMapUse, sidecars: Sidecars) -> bool:
    """Return whether a sidecar states itself what the field map is for."""
    return any(not {"IntendedFor", "B0FieldIdentifier"}.isdisjoint(sidecars.find(each.image)) for each in found.entries)


def _matches(name: BidsName, pattern: str) -> bool:
    """Return whether a name has the suffix of a pattern, and its entities."""
    try:
        wanted = BidsName.parse(pattern).having(sub="", ses="")
    except InvalidName:
        return False
    return wanted.suffix == name.suffix and wanted.entities.items() <= name.entities.items()


def _match_by_time(
    maps: Sequence[_FieldMapUse], targets: Sequence[ShownImage], sidecars: Sidecars, plan: SessionPlan
) -> None:
    order = _orders([*(entry for each in maps for entry in each.entries), *targets], sidecars)
    acquired = {each.identifier: max(order[entry.path] for entry in each.entries) for each in maps}
    for target in targets:
        at = order[target.path]
        before = [each for each in maps if acquired[each.identifier] < at]
        # Those after the last image that needed one: an earlier field map was followed by images of its own.
        others = [order[entry.path] for entry in targets if order[entry.path] < at]
        latest = max((acquired[each.identifier] for each in before), default=None)
        if latest is None:
            continue
        since = max((each for each in others if each < latest), default=None)
        block = [each for each in before if since is None or acquired[each.identifier] > since]
        fitting = [each for each in block if _has_same_shim(each, target, sidecars)]
        if len(fitting) == 1:
            fitting[0].targets.append(target)
        elif fitting:
            names = ", ".join(each.identifier for each in fitting)
            reason = f"is shown, but without a field map, since several could be meant: {names}"
            plan.left_out.append(LeftOut(target.scan.id, target.image.file.name, reason))


def _orders(entries: Sequence[ShownImage], sidecars: Sidecars) -> Mapping[str, Order]:
    """Return the order of images by path: by their acquisition times if all are known, else by their scan IDs."""
    clocks = {}
    for entry in entries:
        match = _CLOCK.fullmatch(str(sidecars.find(entry.image).get("AcquisitionTime", "")))
        clocks[entry.path] = (float(match[1]), float(match[2]), float(match[3])) if match else None
    if None in clocks.values():
        return {entry.path: (natural(entry.scan.id),) for entry in entries}
    return {path: clock for path, clock in clocks.items() if clock is not None}


def _has_same_shim(found: _FieldMapUse, target: ShownImage, sidecars: Sidecars) -> bool:
    wanted = sidecars.find(target.image).get("ShimSetting")
    shims = [sidecars.find(entry.image).get("ShimSetting") for entry in found.entries]
    return wanted is None or all(shim is None or shim == wanted for shim in shims)


def _state(found: _FieldMapUse, plan: SessionPlan, *, plain_paths: bool) -> None:
    if not found.targets:
        return
    targets = sorted(found.targets, key=lambda entry: natural(entry.path))
    paths = []
    for target in targets:
        subject, session = f"sub-{target.name.get('sub')}", f"ses-{target.name.get('ses')}"
        paths.append(f"{session}/{target.path}" if plain_paths else f"bids::{subject}/{session}/{target.path}")
        _add(plan.metadata.setdefault(target.name.stem, {}), "B0FieldSource", found.identifier)
    for entry in found.entries:
        plan.metadata.setdefault(entry.name.stem, {})["B0FieldIdentifier"] = found.identifier
    for entry in found.intending:
        plan.metadata[entry.name.stem]["IntendedFor"] = paths


def _add(fields: dict[str, object], key: str, value: str) -> None:
    """Add a value to a field: alone as text, with others as a list."""
    before = fields.get(key)
    if before is None:
        fields[key] = value
    else:
        fields[key] = [*(before if isinstance(before, list) else [before]), value]
