"""Find the BIDS name of a scan: in a map, in its series description, or in tags of its note.

A map is a JSON list of `{"series_description": ..., "bidsname": ...}`, as XNAT's converter reads it. Further keys are
allowed: `for` names the images that a field map corrects.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xnatfs.rest.bids import BidsMapRow
from xnatfs.rest.models import Scan
from xnatfs.tree.bids.rules.names import DATA_TYPES, BidsName, InvalidName

# ReproIn: `func-bold_task-rest_run+`, `anat-T1w_acq-x`, `anat_T1w`; a session in it, and what follows `__`, are not of
# the name.
_REPROIN = re.compile(
    rf"(?:WIP )?(?P<datatype>{'|'.join(sorted(DATA_TYPES))})(?:-(?P<suffix>[A-Za-z0-9]+))?_?(?P<rest>.*)"
)
# The suffix that a description may omit.
_USUAL_SUFFIX = {"func": "bold", "dwi": "dwi", "fmap": "epi"}
# A tag in a note: `#T1w_001`, `#DWI_MAIN_001`.
_TAG = re.compile(r"#([A-Za-z0-9]+)((?:_[A-Za-z]+)*)_([0-9]+)\b")


@dataclass(frozen=True, slots=True)
class MapLine:
    """One line of a map, or what stands for one."""

    bidsname: str
    source: str  # where it stands, as reports show it
    targets: tuple[str, ...] = ()  # names of the images that a field map is for

    def parse(self) -> BidsName:
        """Return the name without subject and session, which come from the server. Raises InvalidName."""
        return BidsName.parse(self.bidsname).having(sub="", ses="")


def map_key(text: str) -> str:
    return text.strip().casefold()


@dataclass(frozen=True, slots=True)
class BidsMap:
    """The lines of all maps that apply to a project, by series description."""

    lines: Mapping[str, MapLine]
    overridden: Sequence[tuple[str, MapLine, MapLine]] = ()  # key, the line that counts, the one that does not
    wrong: str = ""  # what is wrong with a map, which could name what the lines do not

    @classmethod
    def merge(cls, *sources: tuple[str, Iterable[BidsMapRow]]) -> "BidsMap":
        """Merge maps, each with its name in reports, in order of precedence.

        No line of an invalid map, nor of any map after it, is used: the invalid one could override them.
        """
        lines: dict[str, MapLine] = {}
        overridden: list[tuple[str, MapLine, MapLine]] = []
        for source, rows in sources:
            own: dict[str, MapLine] = {}
            for row in rows:
                if row.wrong:
                    return cls(lines, overridden, row.wrong)
                if not row.bidsname:
                    continue
                own[map_key(row.series_description)] = MapLine(row.bidsname, source, tuple(row.targets.split()))
            for key, line in own.items():
                if key not in lines:
                    lines[key] = line
                elif lines[key].bidsname != line.bidsname:
                    overridden.append((key, lines[key], line))
        return cls(lines, overridden)

    def find(self, scan: Scan) -> MapLine | None:
        """Return the line for a scan: by its series description or, only if that is empty, by its type."""
        return self.lines.get(map_key(scan.series_description) or map_key(scan.type))


def reproin(scan: Scan) -> MapLine | None:
    """Return the line that a series description states itself by ReproIn's convention, if it is a valid name."""
    match = _REPROIN.fullmatch(scan.series_description.strip().partition("__")[0])
    if match is None:
        return None
    rest = [part for part in match["rest"].split("_") if part and not part.startswith("ses-")]
    suffix = match["suffix"] or ("" if rest and "-" not in rest[-1] else _USUAL_SUFFIX.get(match["datatype"], ""))
    parts = [*rest, suffix] if suffix else rest
    line = MapLine(f"{match['datatype']}/{'_'.join(parts)}", "series description")
    try:
        line.parse()
    except InvalidName:
        return None
    return line


def noted(scan: Scan) -> MapLine | None:
    """Return the line that the first tag in a scan's note stands for: `#T1w_001`, `#DWI_PA_001`, `#BOLD_rest_001`."""
    match = _TAG.search(scan.note)
    if match is None:
        return None
    kind, words, number = match[1].lower(), [word for word in match[2].split("_") if word], match[3]
    run = f"run-{number}_"
    match kind:
        case "t1w" | "t2w" | "flair" | "pdw":
            name = f"anat/{run}{kind}"
        case "dwi" if words in ([], ["MAIN"]):
            name = f"dwi/{run}dwi"
        case "dwi" | "bold" if words and words[-1] in ("AP", "PA", "LR", "RL"):
            name = f"fmap/dir-{words[-1]}_{run}epi"
        case "bold":
            name = f"func/task-{''.join(words) or 'rest'}_{run}bold"
        case _:
            return None
    return MapLine(name, "note")
