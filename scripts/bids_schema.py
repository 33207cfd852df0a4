"""Write the rules for BIDS file names that the view needs, from the official schema, to tree/bids/rules/schema.json.

Run `python -m scripts.bids_schema` after an update of bidsschematools; a test compares.
"""

import json
from pathlib import Path
from typing import Any

from bidsschematools.schema import load_schema

TARGET = Path(__file__).parents[1] / "xnatfs" / "tree" / "bids" / "rules" / "schema.json"
# Of the data types that the view can show: MRI, whose images are NIfTI files.
DATA_TYPES = ("anat", "dwi", "fmap", "func", "perf")
EXTENSIONS = (".nii.gz", ".nii", ".json", ".bval", ".bvec")


def rules() -> dict[str, Any]:
    """Return the entities in their order, and for each data type the suffixes with their entities and extensions."""
    schema = load_schema()
    groups = []
    for datatype in DATA_TYPES:
        for group in schema.rules.files.raw[datatype].values():
            extensions = [extension for extension in EXTENSIONS if extension in group["extensions"]]
            if ".nii.gz" not in extensions:
                continue
            levels = {schema.objects.entities[key].name: level for key, level in group["entities"].items()}
            groups.append(
                {
                    "datatype": datatype,
                    "suffixes": sorted(group["suffixes"]),
                    "required": sorted(name for name, level in levels.items() if level == "required"),
                    "optional": sorted(name for name, level in levels.items() if level != "required"),
                    "extensions": extensions,
                }
            )
    entities = {}
    for key in schema.rules.entities:
        entity = schema.objects.entities[key]
        entities[entity.name] = {"format": entity.format} | ({"values": list(entity.enum)} if "enum" in entity else {})
    return {"bids_version": schema.bids_version, "entities": entities, "groups": groups}


def text() -> str:
    """Return the rules as they are stored: an entity and a group of suffixes a line."""
    found = rules()
    entities = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entity)}" for name, entity in found["entities"].items())
    groups = ",\n".join(f"  {json.dumps(group)}" for group in found["groups"])
    version = json.dumps(found["bids_version"])
    return f'{{\n "bids_version": {version},\n "entities": {{\n{entities}\n }},\n "groups": [\n{groups}\n ]\n}}\n'


if __name__ == "__main__":
    TARGET.write_text(text())
