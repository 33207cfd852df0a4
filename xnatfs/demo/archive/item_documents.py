"""Read the fields of an item from a request: from its XML document and from its query, which takes precedence."""

from collections.abc import Mapping
from xml.etree import ElementTree

from xnatfs.demo.archive.data_types import EXPERIMENTS, SCANS
from xnatfs.demo.rest.tables import Query
from xnatfs.demo.server.reply import Failed

ROOT_ELEMENTS = {f"{name.removesuffix('data')}": xsi_type for name, xsi_type in {**EXPERIMENTS, **SCANS}.items()}


def fields_of(query: Query, body: bytes) -> Mapping[str, str]:
    """Return the fields of a query and of an XML body. Raises Failed if the document is invalid or of unknown type."""
    return {**(_document(body) if body.lstrip()[:1] == b"<" else {}), **query}


def _document(body: bytes) -> dict[str, str]:
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise Failed(400, f"Unable to parse the document: {error}") from None
    name = root.tag.rpartition("}")[2].lower()
    xsi_type = next((found for key, found in ROOT_ELEMENTS.items() if key.partition(":")[2] == name), "")
    if not xsi_type and name not in ("project", "subject"):
        raise Failed(422, f"Unknown type of document: {name}")
    fields = {key.rpartition("}")[2]: value for key, value in root.attrib.items()}
    fields |= {child.tag.rpartition("}")[2]: child.text.strip() for child in root if child.text and child.text.strip()}
    return {**fields, "xsiType": xsi_type} if xsi_type else fields
