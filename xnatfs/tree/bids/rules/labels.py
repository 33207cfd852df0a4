"""Make the labels of sub- and ses- folders: of the labels on the server, and never of an index or an order of rows."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from xnatfs.rest.models import natural
from xnatfs.tree.bids.rules.names import alphanumeric


class Labelled(NamedTuple):
    """A subject or a session, with what its folder's name is made of."""

    id: str  # the accession ID
    label: str
    is_shared: bool = False  # into the project: what the project owns keeps its plain name


def folder_labels(items: Iterable[Labelled]) -> tuple[dict[str, str], list[str]]:
    """Return the label of each folder by accession ID, and the IDs of those that could not have their plain one.

    A plain label is that of the server, reduced to letters and digits. Of several equal ones, also if only their case
    differs, which some file systems do not tell apart, the lowest accession keeps it, and the others append `X` and the
    digits of their own. Accessions only grow: so what is added later renames nothing.
    """
    labels: dict[str, str] = {}
    used: set[str] = set()
    renamed: list[str] = []
    for item in sorted(set(items), key=lambda item: (item.is_shared, natural(item.id), item.label)):
        if item.id in labels:
            continue
        label = alphanumeric(item.label)
        if not label or label.lower() in used:
            renamed.append(item.id)
            label += _mark(item.id)
            while label.lower() in used:
                label += _mark(item.id)
        labels[item.id] = label
        used.add(label.lower())
    return labels, renamed


def _mark(accession: str) -> str:
    digits = "".join(re.findall(r"[0-9]+", accession))
    return f"X{digits}" if digits else f"X{alphanumeric(accession)}"


def without_subject(session: str, subject: str) -> str:
    """Return the label of a session without the subject's in front of it, for the option `ses=suffix`."""
    match = re.match(rf"{re.escape(subject)}[ _.-]+(?=.)", session, re.IGNORECASE) if subject else None
    return session[match.end() :] if match else session
