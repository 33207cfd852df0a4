"""Serve item documents: HTML by default, JSON with typed values, or XML; 406 if the client accepts JSON alone."""

import json
from collections.abc import Mapping
from typing import Any

from xnatfs.demo.archive.model import Archive, Experiment, Project, Reconstruction, Resource, Scan, Subject
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.tables import FORMATS, JSON, XML, Query, negotiated, stored, table
from xnatfs.demo.server.reply import HTML, Failed, Reply, chunked

Item = dict[str, Any]

SPACES = ' xmlns:xnat="http://nrg.wustl.edu/xnat" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
DEMOGRAPHICS = ("gender", "yob", "dob", "age", "handedness", "education", "race", "ethnicity", "height", "weight")
ATTRIBUTES = ("ID", "project", "label", "type", "secondary_ID")


def _item(kind: str, fields: Mapping[str, object], **children: list[Item]) -> Item:
    return {
        "meta": {
            "xsi:type": kind,
            "isHistory": False,
            "create_event_id": 1,
            "start_date": "Tue Jan 02 03:04:05 UTC 2024",
        },
        "data_fields": {
            key: stored(value) if isinstance(value, str) else value
            for key, value in fields.items()
            if value not in ("", None)
        },
        "children": [{"field": name.replace("__", "/"), "items": items} for name, items in children.items() if items],
    }


def _resources(resources: list[Resource]) -> list[Item]:
    return [_item("xnat:resourceCatalog", _resource(resource)) for resource in resources]


def _resource(resource: Resource) -> Item:
    return {
        "label": resource.label,
        "file_count": len(resource.entries),
        "file_size": resource.size(),
        "URI": f"/data/xnat/archive/{resource.id}_catalog.xml",
        "xnat_abstractresource_id": resource.id,
        "format": resource.format,
        "content": resource.content,
    }


def project(archive: Archive, item: Project, asked: Asked) -> Reply:
    fields = {
        "ID": item.id,
        "secondary_ID": item.secondary_id or item.id,
        "name": item.name,
        "description": item.description,
    }
    pi = [_item("xnat:investigatorData", {"lastname": "Demo", "firstname": "Pat"})]
    others = [_item("xnat:investigatorData", {"lastname": "Sample", "firstname": "Robin"})]
    children = {"resources__resource": _resources(item.resources), "PI": pi, "investigators__investigator": others}
    return _sent(_item("xnat:projectData", fields, **children), asked)


def subject(archive: Archive, item: Subject, asked: Asked) -> Reply:
    own = {name: value for name, value in item.fields.items() if name not in DEMOGRAPHICS}
    fields = {"ID": item.id, "project": item.project, "label": item.label, **own}
    people = {
        name: int(value) if value.isdigit() else value for name, value in item.fields.items() if name in DEMOGRAPHICS
    }
    sessions = [
        _session(archive, experiment)
        for experiment in archive.experiments.values()
        if experiment.subject == item.id and not experiment.session and archive.reads_item(asked.user, experiment)
    ]
    made = _item(
        "xnat:subjectData",
        fields,
        resources__resource=_resources(item.resources),
        demographics=[_item("xnat:demographicData", people)] if people else [],
        experiments__experiment=sessions,
        sharing__share=_shares("xnat:projectParticipant", item.shared),
    )
    return _sent(made, asked)


def experiment(archive: Archive, item: Experiment, asked: Asked) -> Reply:
    return _sent(_session(archive, item), asked)


def _session(archive: Archive, item: Experiment) -> Item:
    fields = {
        **item.fields,
        "ID": item.id,
        "label": item.label,
        "project": item.project,
        "date": item.date,
        "subject_ID": "" if item.session else item.subject,
        "imageSession_ID": item.session,
        "UID": item.uid,
    }
    return _item(
        item.xsi_type,
        fields,
        scans__scan=[_scan(scan) for scan in item.scans],
        resources__resource=_resources(item.resources),
        reconstructions__reconstructedImage=[_reconstruction(recon) for recon in item.reconstructions],
        assessors__assessor=[_session(archive, assessor) for assessor in archive.assessors_of(item)],
        out__file=_resources(item.out),
        in__file=_resources(item.inputs),
        sharing__share=_shares("xnat:experimentData_share", item.shared),
    )


def _shares(kind: str, shared: dict[str, str]) -> list[Item]:
    return [_item(kind, {"project": project, "label": label}) for project, label in shared.items()]


def _reconstruction(item: Reconstruction) -> Item:
    fields = {"ID": item.id, "type": item.type}
    files = {"out__file": _resources(item.out), "in__file": _resources(item.inputs)}
    return _item("xnat:reconstructedImageData", fields, **files)


def _scan(item: Scan) -> Item:
    fields = {
        "ID": item.id,
        "type": item.type,
        "quality": item.quality,
        "series_description": item.series_description,
        "note": item.note,
        "xnat_imagescandata_id": item.pk,
        "UID": item.uid,
    }
    return _item(item.xsi_type, fields, file=_resources(item.resources))


def scan(session: Experiment, item: Scan, asked: Asked) -> Reply:
    return _sent(_scan(item), asked)


def _sent(item: Item, asked: Asked) -> Reply:
    default = asked.query.release.document_type
    form = negotiated(asked.query, sorted(("text/html", XML), key=lambda kind: kind != default))
    if "format" in asked.query:
        form = FORMATS.get(asked.query["format"].lower(), asked.query["format"].lower())
    if form == JSON:
        return chunked(json.dumps({"items": [item]}, ensure_ascii=False).encode(), JSON)
    if form in ("html", "text/html"):
        title = str(item["data_fields"].get("label") or item["data_fields"].get("ID"))
        return chunked(f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>".encode(), HTML)
    name = item["meta"]["xsi:type"].partition(":")[2].removesuffix("Data")
    kind = name[:1].upper() + name[1:]
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{_xml(kind, item, SPACES)}'
    return chunked(body.encode(), XML)


def _xml(tag: str, item: Item, spaces: str = "") -> str:
    """Return an item as schema XML: identifying fields as attributes, the others as elements."""
    fields = item["data_fields"]
    inside = fields if tag == "file" else {key: fields[key] for key in ATTRIBUTES if key in fields}
    attributes = "".join(f' {key}="{value}"' for key, value in inside.items() if not key.startswith("xnat_"))
    kind = "" if spaces else f' xsi:type="{item["meta"]["xsi:type"]}"'
    below = "".join(f"<xnat:{key}>{value}</xnat:{key}>" for key, value in fields.items() if key not in inside)
    for child in item["children"]:
        outer, _, inner = child["field"].partition("/")
        found = "".join(_xml(inner or outer, each) for each in child["items"])
        below += f"<xnat:{outer}>{found}</xnat:{outer}>" if inner else found
    return f"<xnat:{tag}{spaces}{attributes}{kind}>{below}</xnat:{tag}>"


def elements(archive: Archive, user: str, query: Query) -> Reply:
    """Reply with the data types that occur in the user's data."""
    seen = [e.xsi_type for e in archive.experiments.values() if archive.reads_item(user, e)]
    names = ["xnat:projectData", "xnat:subjectData", *sorted(set(seen))]
    rows = []
    for name in names:
        stem, kind, _ = name.partition(":")[2].removesuffix("Data").partition("Session")
        shown = f"{stem.upper()} {kind}" if kind else stem.title()
        count = str(seen.count(name))
        row = {"ELEMENT_NAME": name, "SINGULAR": shown, "PLURAL": f"{shown}s", "SECURED": "true", "COUNT": count}
        rows.append(row)
    return table(rows, query, title="Data-Types", total=False)


def fields(xsi_type: str, query: Query) -> Reply:
    """Reply with the fields of a data type that a stored search may show. Raises Failed for an unknown type."""
    kind = xsi_type.partition(":")[2]
    if not xsi_type.startswith(("xnat:", "icr:")) or not kind.endswith("Data"):
        raise Failed(404, "")
    own = {"projectData": ["ID", "NAME"], "subjectData": ["SUBJECT_ID", "SUBJECT_LABEL", "PROJECT"]}
    rows = [
        {
            "FIELD_ID": name,
            "HEADER": name.replace("_", " ").title(),
            "SUMMARY": f"{kind} {name}",
            "TYPE": "string",
            "DESC": "",
            "ELEMENT_NAME": xsi_type,
        }
        for name in own.get(kind, ["EXPT_ID", "LABEL", "DATE", "PROJECT", "SUBJECT_ID"])
    ]
    return table(rows, query)
