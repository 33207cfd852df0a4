"""Parse, repair and write BIDS file names, by the rules of the official schema.

`schema.json` is made of the schema by `scripts/bids_schema.py`: the entities in their order, and for each data type
the suffixes with the entities that they require and allow. Nothing here decides by a list of its own.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, Self

_SCHEMA: dict[str, Any] = json.loads(files(__package__).joinpath("schema.json").read_text())
BIDS_VERSION: str = _SCHEMA["bids_version"]
ENTITIES: Mapping[str, Mapping[str, Any]] = _SCHEMA["entities"]
_ORDER = {name: place for place, name in enumerate(ENTITIES)}
_GROUPS: list[dict[str, Any]] = _SCHEMA["groups"]
DATA_TYPES = frozenset(group["datatype"] for group in _GROUPS)
# Suffixes by their lower case, `t1w` for T1w: a test checks that no two differ in case alone.
_BY_CASE = {suffix.lower(): suffix for group in _GROUPS for suffix in group["suffixes"]}

_NOT_ALPHANUMERIC = re.compile(r"[^0-9A-Za-z]+")
IMAGE_EXTENSIONS = (".nii.gz", ".nii")
EXTENSIONS = (*IMAGE_EXTENSIONS, ".json", ".bval", ".bvec")
# The value of `run` in ReproIn's names that counts the scans of one name.
COUNTED_RUN = "+"
# Characters of a name without its extension: a file name has at most 255 bytes on Linux.
MOST_STEM_CHARACTERS = 255 - len(".nii.gz")


class InvalidName(ValueError):
    """A text that is no BIDS name, with the reason as its message."""


def alphanumeric(text: str) -> str:
    """Return a text as the value of an entity: without any other characters."""
    return _NOT_ALPHANUMERIC.sub("", text)


def split_extension(name: str) -> tuple[str, str]:
    """Split a file name into its stem and its extension, one of EXTENSIONS in lower case or ''."""
    lower = name.lower()
    extension = next((each for each in EXTENSIONS if lower.endswith(each)), "")
    return name[: len(name) - len(extension)], extension


def is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_EXTENSIONS)


@dataclass(frozen=True, slots=True)
class BidsName:
    """A name as a map, a file or a series description states it: not necessarily a complete one.

    Attributes:
        suffix: As in the schema.
        entities: The values by the entities' short names, in any order.
        datatype: The folder; '' where it follows from the rest.
    """

    suffix: str
    entities: Mapping[str, str] = field(default_factory=dict)
    datatype: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `T1w`, `acq-x_T1w`, `func/task-rest_bold`, or a whole file name.

        The values of entities are reduced to letters and digits, the suffix is written as the schema has it.

        Raises:
            InvalidName: With what is wrong about it.
        """
        stem, _ = split_extension(text.strip())
        folder, _, name = stem.rpartition("/")
        datatype = folder.rpartition("/")[2]
        if datatype and datatype not in DATA_TYPES:
            raise InvalidName(f"unknown data type {datatype!r}")
        *parts, last = name.split("_")
        suffix = _BY_CASE.get(last.lower())
        if suffix is None:
            raise InvalidName(f"unknown suffix {last!r}")
        entities: dict[str, str] = {}
        for part in parts:
            key, value = _entity(part)
            if key in entities:
                raise InvalidName(f"{key}- stands twice")
            entities[key] = value
        return cls(suffix, entities, datatype)

    def get(self, entity: str) -> str:
        return self.entities.get(entity, "")

    def having(self, **entities: str) -> "BidsName":
        """Return the name with further or other entities; '' removes one."""
        merged = {**self.entities, **entities}
        return replace(self, entities={key: value for key, value in merged.items() if value})

    def called(self, suffix: str) -> "BidsName":
        return replace(self, suffix=suffix)

    @property
    def stem(self) -> str:
        """Return the file name without extension: entities in the order of the schema, then the suffix."""
        ordered = sorted(self.entities, key=_ORDER.__getitem__)
        return "_".join([*(f"{key}-{self.entities[key]}" for key in ordered), self.suffix])

    @property
    def path(self) -> str:
        """Return the path within the session's folder, without extension."""
        return f"{self.datatype}/{self.stem}"

    def allows(self, entity: str) -> bool:
        """Return whether some rule of the suffix has the entity."""
        return any(entity in (*group["required"], *group["optional"]) for group in self._groups())

    def resolved(self) -> "BidsName":
        """Return the name with its data type, checked by the schema. Raises InvalidName."""
        groups, reasons = self._groups(), list[str]()
        fitting = []
        for group in groups:
            reason = _mismatch(self.entities, group)
            if reason:
                reasons.append(reason)
            else:
                fitting.append(group["datatype"])
        if not groups:
            raise InvalidName(f"{self.suffix} does not belong to {self.datatype}/")
        if not fitting:
            raise InvalidName(f"{reasons[0]} for {self.suffix}")
        if len(set(fitting)) > 1:
            raise InvalidName(f"{self.suffix} may belong to {' or '.join(sorted(set(fitting)))}: the map must name one")
        if len(self.stem) > MOST_STEM_CHARACTERS:
            raise InvalidName("a file name cannot be that long")
        return replace(self, datatype=fitting[0])

    def _groups(self) -> list[dict[str, Any]]:
        return [
            group for group in _GROUPS if self.suffix in group["suffixes"] and self.datatype in ("", group["datatype"])
        ]


def _entity(part: str) -> tuple[str, str]:
    """Parse one entity of a name. Raises InvalidName."""
    if part == "run+":
        return "run", COUNTED_RUN
    key, dash, value = part.partition("-")
    if not dash or key not in ENTITIES:
        raise InvalidName(f"unknown entity {part!r}")
    cleaned = alphanumeric(value)
    if not cleaned:
        raise InvalidName(f"{key}- has no value")
    rule = ENTITIES[key]
    if rule["format"] == "index" and not (cleaned.isascii() and cleaned.isdigit()):
        raise InvalidName(f"{key}-{cleaned} is not a number")
    if "values" in rule and cleaned not in rule["values"]:
        raise InvalidName(f"{key}- must be one of {', '.join(rule['values'])}, not {cleaned}")
    return key, cleaned


def _mismatch(entities: Mapping[str, str], group: Mapping[str, Any]) -> str:
    """Return the reason why a group of the schema excludes the entities, or ''."""
    missing = [name for name in group["required"] if name not in entities]
    if missing:
        return f"{missing[0]}- is missing"
    excess = [name for name in entities if name not in group["required"] and name not in group["optional"]]
    return f"{excess[0]}- is not allowed" if excess else ""


def accepts_extension(name: BidsName, extension: str) -> bool:
    """Return whether a complete name may have an extension."""
    return any(extension in group["extensions"] and not _mismatch(name.entities, group) for group in name._groups())
