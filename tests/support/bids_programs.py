"""Run programs that read BIDS, each in a process of its own: the official validator, PyBIDS, and fMRIPrep's queries."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.mounting import SCRIPTS, run

# Installing it takes 35 s and 500 MB of image libraries, for one function of it.
HAS_NIWORKFLOWS = importlib.util.find_spec("niworkflows") is not None

INDEX = """
import json, sys, warnings
warnings.simplefilter("ignore")
from bids import BIDSLayout
layout = BIDSLayout(sys.argv[1])
files = layout.get(return_type="file")
entities = {path: dict(layout.get_file(path).get_entities(metadata=None)) for path in files if path.endswith(".nii.gz")}
print(json.dumps([files, entities], default=str))
"""
COLLECT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from niworkflows.utils.bids import collect_data, collect_participants
from bids import BIDSLayout
layout = BIDSLayout(sys.argv[1])
found = {}
for label in collect_participants(layout):
    data, _ = collect_data(layout, label, bids_validate=False)
    found[label] = {kind: paths for kind, paths in data.items() if paths}
print(json.dumps(found))
"""


def validate(dataset: Path) -> Counter[tuple[str, str, str, str]]:
    """Run the validator, and count its issues by severity, code, second code and place."""
    done = run(SCRIPTS / "bids-validator-deno", "--json", dataset)
    try:
        issues = json.loads(done.stdout)["issues"]["issues"]
    except ValueError:
        raise AssertionError(f"exit status {done.returncode}: {done.stderr}") from None
    parts = ("severity", "code", "subCode", "location")
    found = Counter(tuple(str(issue.get(part, "")) for part in parts) for issue in issues)
    assert bool(done.returncode) == any(severity == "error" for severity, *_ in found)
    return found  # type: ignore[return-value]


def errors(issues: Counter[tuple[str, str, str, str]]) -> dict[tuple[str, str], int]:
    """Count the errors among issues by their codes."""
    counts: Counter[tuple[str, str]] = Counter()
    for (severity, code, second, _), count in issues.items():
        if severity == "error":
            counts[code, second] += count
    return dict(counts)


def index(dataset: Path) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """Return what PyBIDS finds: all files, and the entities and metadata of each image, by paths in the data set."""
    files, entities = _json_of(INDEX, dataset)
    relative = {path: str(Path(path).relative_to(dataset)) for path in files}
    return set(relative.values()), {relative[path]: found for path, found in entities.items()}


def collect(dataset: Path) -> Any:
    """Return the files that fMRIPrep would work on, by participant and kind, by paths in the data set."""
    return json.loads(json.dumps(_json_of(COLLECT, dataset)).replace(f"{dataset}/", ""))


def _json_of(script: str, dataset: Path) -> Any:
    done = run(sys.executable, "-c", script, dataset)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
