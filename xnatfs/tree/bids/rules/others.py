"""Recognise data that is not shown, to report it: other kinds than MRI images, and what was derived from images."""

import re
from collections.abc import Iterable

from xnatfs.tree.bids.rules.names import is_image, split_extension

PHYSIO, EYES = "physiological recordings are not shown", "eye tracking is not shown"
EVENTS, BEHAVIOUR = "events are not shown", "behavioural data are not shown"
PET, MEG, EEG = "PET is not shown", "MEG is not shown", "EEG is not shown"
MASKS, DERIVATIVES = "masks and segmentations are derivatives", "derivatives are not shown"
MRTRIX, FREESURFER = "images of MRtrix are derivatives", "the output of FreeSurfer is a derivative"
SECONDARY = "secondary captures are not shown"
ELSEWHERE = "images are shown of scans' resources NIFTI and BIDS only"

# By the last part of a BIDS name.
_BY_SUFFIX = {
    "physio": PHYSIO, "stim": PHYSIO, "physioevents": EYES, "eyetrack": EYES, "events": EVENTS, "beh": BEHAVIOUR,
    "pet": PET, "blood": PET, "meg": MEG, "headshape": MEG, "eeg": EEG, "ieeg": EEG, "nirs": "NIRS is not shown",
    "mask": MASKS, "dseg": MASKS, "probseg": MASKS, "xfm": DERIVATIVES, "boldref": DERIVATIVES,
}  # fmt: skip
# By the end of a file name, or a folder in its path.
_BY_ENDING = [
    (re.compile(r"\.(puls|resp|ecg|ext|acq|phys)$"), PHYSIO),
    (re.compile(r"\.asc$"), EYES),
    (re.compile(r"\.mif(\.gz)?$"), MRTRIX),
    (re.compile(r"\.mg[hz]$|(^|/)surf/[lr]h\."), FREESURFER),
    (re.compile(r"\.(fif|meg4|con|sqd)$"), MEG),
    (re.compile(r"\.(vhdr|vmrk|eeg|edf|bdf|set|fdt)$"), EEG),
    (re.compile(r"(^|/)dataset_description\.json$"), DERIVATIVES),
]
# Their content is known from the label.
_BY_LABEL = {"SECONDARY": SECONDARY}
_UNREPORTED = frozenset({"DICOM", "SNAPSHOTS", "PROVENANCE"})


def kind_of(path: str) -> str:
    """Return why a file of this path is not shown, '' if nothing speaks against it."""
    lower = path.lower()
    stem, extension = split_extension(lower.rpartition("/")[2])
    # Of other images this is the last word of a description, which a map may name.
    is_named = stem.startswith("sub-") or not extension
    if is_named and (kind := kind_of_name(stem.partition(".")[0])):
        return kind
    return next((kind for ending, kind in _BY_ENDING if ending.search(lower)), "")


def kind_of_name(name: str) -> str:
    """Return why a BIDS name is not shown, by its suffix; '' if nothing speaks against it."""
    return _BY_SUFFIX.get(re.split("[_/]", name.lower())[-1], "")


def other_data(label: str, paths: Iterable[str]) -> list[str]:
    """Return the reasons why the files of a resource that is not looked at are not shown, with their number."""
    if label.strip().upper() in _UNREPORTED:
        return []
    counts: dict[str, int] = {}
    for path in paths:
        kind = _BY_LABEL.get(label.strip().upper()) or kind_of(path) or (ELSEWHERE if is_image(path) else "")
        if kind:
            counts[kind] = counts.get(kind, 0) + 1
    return [f"{kind} ({count} file{'s' if count != 1 else ''})" for kind, count in sorted(counts.items())]
