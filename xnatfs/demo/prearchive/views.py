"""Serve views of the prearchive: the list, a session, its scans, files and log (XNAT REST contract 12.1, 12.2)."""

from datetime import UTC, datetime
from xml.sax.saxutils import quoteattr

from xnatfs.demo.archive.model import Found, Home, Resource
from xnatfs.demo.content import archives, files
from xnatfs.demo.prearchive.sessions import Prearchive, Received
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.tables import Query, Rows, table
from xnatfs.demo.server.reply import Failed, Reply, chunked, text

COLUMNS = (
    "project", "timestamp", "lastmod", "uploaded", "scan_date", "scan_time", "subject", "folderName", "name", "tag",
    "status", "url", "autoarchive", "prevent_anon", "prevent_auto_commit", "SOURCE", "VISIT", "PROTOCOL", "TIMEZONE",
)  # fmt: skip


def listing(prearchive: Prearchive, found: list[Received], query: Query) -> Reply:
    return table([_row(prearchive, one) for one in found], query, total=False, columns=COLUMNS, ordered=True)


def _row(prearchive: Prearchive, received: Received) -> dict[str, str]:
    session, said = received.session, received.said
    row = {
        "project": received.project,
        "timestamp": received.timestamp,
        "lastmod": _moment(received.changed),
        "uploaded": _moment(received.uploaded),
        "scan_date": f"{session.date} 00:00:00.0" if session.date else "",
        "scan_time": session.fields.get("time", ""),
        "subject": received.subject,
        "folderName": received.folder,
        "name": session.label,
        "tag": session.uid,
        "status": received.state(prearchive.clock()),
        "url": received.path,
        "autoarchive": received.auto,
    }
    row |= {name: said.get(name, "false") for name in ("prevent_anon", "prevent_auto_commit")}
    return row | {name: said.get(name, "") for name in ("SOURCE", "VISIT", "PROTOCOL", "TIMEZONE")}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-5]


def show(prearchive: Prearchive, received: Received, asked: Asked, tail: tuple[str, ...], *, ranges: bool) -> Reply:
    """Answer .../TIMESTAMP/SESSION and the paths below it.

    Args:
        prearchive: The prearchive.
        received: The session.
        asked: The request.
        tail: The path below the session.
        ranges: Whether the site serves ranges.

    Raises:
        Failed: There is nothing at this path.
    """
    query = asked.query
    match tail:
        case ():
            return _session(prearchive, received, query)
        case ("logs", *which):
            return _logs(received, which, query)
        case ("scans",):
            rows = [
                {"ID": scan.id, "xsiType": scan.xsi_type, "series_description": scan.series_description}
                for scan in received.session.scans
            ]
            return table(rows, query, columns=("ID", "xsiType", "series_description"))
        case ("resources",):
            return table(
                _resources(list(received.session.held_at_any_level())), query, columns=("category", "cat_id", "label")
            )
        case ("scans", id, "resources"):
            rows = [{key: row[key] for key in SIZES} for row in _resources(of_scan(received, id))]
            return table(rows, query, columns=SIZES)
        case ("scans", id) if query.get("format") in archives.ARCHIVES:
            return archives.archive(of_scan(received, id), query, _layout(prearchive, received, query))
        case ("scans", _, "resources", _, "files", *path) | ("resources", _, "files", *path):
            return _files(located(received, tail), asked, path, ranges)
    raise Failed(404, "")


SIZES = ("label", "file_count", "file_size")


def of_scan(received: Received, id: str) -> Found:
    """Return the resources of a scan. Raises Failed if there is no such scan."""
    scan = next((scan for scan in received.session.scans if scan.id == id), None)
    if scan is None:
        raise Failed(404, "Unable to identify scan")
    return received.session.held_by_scan(scan)


def located(received: Received, tail: tuple[str, ...]) -> Found:
    """Return the resource that [scans/N/]resources/R addresses, as the only one. Raises Failed if there is none."""
    found, label = (
        (received.session.held(), tail[1]) if tail[0] == "resources" else (of_scan(received, tail[1]), tail[3])
    )
    chosen = [pair for pair in found if pair[0].label == label]
    if not chosen:
        raise Failed(404, "Unable to identify resource")
    return chosen[:1]


def _session(prearchive: Prearchive, received: Received, query: Query) -> Reply:
    if query.get("format") == "json":
        return listing(prearchive, [received], query)
    if query.get("format") in archives.ARCHIVES:
        return archives.archive(list(received.session.held_at_any_level()), query, _layout(prearchive, received, query))
    if not received.built:
        raise Failed(404, "The session document was not built yet.")
    if query.get("format") == "html":
        return table([_row(prearchive, received)], query, total=False, ordered=True)
    session = received.session
    scans = "".join(
        f"<xnat:scan ID={quoteattr(scan.id)} type={quoteattr(scan.type)} UID={quoteattr(scan.uid)} "
        f'xsi:type="{scan.xsi_type}"/>'
        for scan in session.scans
    )
    kind = session.xsi_type.partition(":")[2].removesuffix("SessionData").upper()
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<xnat:{kind}Session label={quoteattr(session.label)} '
        f'UID={quoteattr(session.uid)} xmlns:xnat="http://nrg.wustl.edu/xnat" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><xnat:scans>{scans}</xnat:scans></xnat:{kind}Session>'
    )
    return chunked(body.encode(), "text/xml;charset=UTF-8")


class _Folder(archives.Layout):
    """The layout of the session's directory on the server."""

    def member(self, resource: Resource, home: Home, path: str) -> str:
        place = f"SCANS/{home.cat_id}" if home.category == "scans" else "RESOURCES"
        return f"{self.name}/{place}/{resource.label}/{path}"


def _layout(prearchive: Prearchive, received: Received, query: Query) -> archives.Layout:
    return _Folder(prearchive.archive, received.folder, kind=archives.ARCHIVES[query["format"]])


def _logs(received: Received, which: list[str], query: Query) -> Reply:
    if not which:
        rows = [{"id": str(number), "message": words} for number, words in enumerate(received.messages)]
        return table(rows, query, columns=("id", "message"), ordered=True)
    number = len(received.messages) - 1 if which == ["last"] else int(which[0]) if which[0].isdigit() else -1
    if not 0 <= number < len(received.messages):
        raise Failed(404, "")
    return text(received.messages[number])


def _resources(found: Found) -> Rows:
    return [
        {
            "category": home.category,
            "cat_id": home.cat_id if home.category == "scans" else "",
            "label": resource.label,
            "file_count": str(len(resource.entries)),
            "file_size": str(resource.size()),
        }
        for resource, home in found
    ]


def _files(found: Found, asked: Asked, path: list[str], ranges: bool) -> Reply:
    if path:
        return files.download(files.find_entry(found, "/".join(path)), asked.headers, asked.query, ranges=ranges)
    base = "/data/" + "/".join(asked.segments)
    rows = [
        {"Name": entry.path.rpartition("/")[2], "Size": entry.size, "URI": f"{base}/{entry.path}"}
        for entry in found[0][0].entries
    ]
    return table(rows, asked.query, columns=("Name", "Size", "URI"), ordered=True)
