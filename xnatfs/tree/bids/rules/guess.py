"""Draft lines of a map: a guess at the BIDS name of a scan from its series description."""

import json
import re

from xnatfs.rest.models import Scan
from xnatfs.tree.bids.rules.maps import reproin
from xnatfs.tree.bids.rules.names import alphanumeric

# Tried in this order, on the description and else on the type. Words of scanners' protocols, not of BIDS.
_GUESSES = [
    (r"locali[sz]er|scout|survey|3.?plane|calibration|phoenix|report|screen.?save|mosaic", ""),
    (r"physio|\bpet\b|\b[em]eg\b", ""),
    (r"sb.?ref", "task-{task}_sbref"),
    (r"gre_field|field.?map|b0.?map", "phasediff"),
    (r"(spin.?echo|se).?(field|fm)|dist(ortion)?.?(map|corr)|topup|blip", "epi"),
    (r"bold|fmri|rest(ing)?|task|epi\b", "task-{task}_bold"),
    (r"asl|perfusion", "asl"),
    (r"dwi|dti|diff", "dwi"),
    (r"flair", "FLAIR"),
    (r"pd.{0,3}t2|t2.{0,3}pd|dual.?echo", "PDT2"),
    (r"angio|tof|mra\b", "angio"),
    (r"mp2rage", "MP2RAGE"),
    (r"mprage|spgr|bravo|tfl|t1", "T1w"),
    (r"t2.?(\*|star)|swi|gre\b", "T2starw"),
    (r"t2", "T2w"),
    (r"\bpd", "PDw"),
]
# Words of a description that do not name the task.
_NO_TASK = re.compile(r"bold|fmri|task|epi|run|\d+|mb|sb.?ref|ap|pa|mm|ep2d", re.IGNORECASE)

_LOCALIZER = re.compile(_GUESSES[0][0], re.IGNORECASE)


def is_like_localizer(scan: Scan) -> bool:
    """Return whether type or description suggest that the scan is not to be shown, so that its sidecar must be read."""
    return _LOCALIZER.search(f"{scan.type} {scan.series_description}") is not None


def guess(scan: Scan) -> str:
    """Return a likely BIDS name, or '' where nothing suggests one."""
    if line := reproin(scan):
        return line.bidsname
    for text in (scan.series_description, scan.type):
        for pattern, name in _GUESSES:
            if re.search(pattern, text, re.IGNORECASE):
                return name.format(task=_task(text))
    return ""


def _task(description: str) -> str:
    if re.search(r"rest", description, re.IGNORECASE):
        return "rest"
    words = [alphanumeric(word) for word in re.split(r"[\s_.-]+", description) if not _NO_TASK.fullmatch(word)]
    return "".join(word.lower() for word in words) or "task"


def map_line(scan: Scan) -> str:
    """Return the line of a map for a scan; without a guess, its name is to be written."""
    return json.dumps(map_entry(scan), ensure_ascii=False)


def map_entry(scan: Scan) -> dict[str, str]:
    return {"series_description": scan.series_description.strip() or scan.type, "bidsname": guess(scan)}
