"""Keep the documents of the configuration service, with all their versions."""

from dataclasses import dataclass, field

STORED = "2024-01-02 03:04:05.678"


@dataclass(frozen=True)
class DocumentKey:
    """The address of a document; of a group of documents where its last parts are empty."""

    project: str  # "" for the site
    tool: str
    path: str


@dataclass
class Configurations:
    """Documents of tools, of the site and of each project. Deleting a document only disables it."""

    versions: dict[DocumentKey, list[dict[str, str]]] = field(default_factory=dict)

    def put(
        self, tool: str, path: str, contents: str, *, project: str = "", user: str = "admin", status: str = "enabled"
    ) -> None:
        """Store a document, unless it equals its last version.

        Args:
            tool: The tool that reads it.
            path: Its path below the tool.
            contents: Its text.
            project: The project that it belongs to; "" for the site.
            user: The user who changes it.
            status: "enabled" or "disabled".
        """
        found = self.versions.setdefault(DocumentKey(project, tool, path), [])
        if found and (found[-1]["contents"], found[-1]["status"]) == (contents, status):
            return
        row = {"tool": tool, "path": path, "project": project, "user": user, "create_date": STORED, "reason": ""}
        row |= {"contents": contents, "unversioned": "false", "version": str(len(found) + 1), "status": status}
        found.append(row)

    def tools(self, project: str) -> list[str]:
        return sorted({key.tool for key in self.versions if key.project == project})

    def latest(self, key: DocumentKey) -> list[dict[str, str]]:
        """Return the last version of the document, or of each document of the tool if the key has no path."""
        if key.path:
            return self.versions.get(key, [])[-1:]
        mine = (each for each in self.versions if (each.project, each.tool) == (key.project, key.tool))
        return [self.versions[each][-1] for each in mine]

    def version(self, key: DocumentKey, number: str) -> list[dict[str, str]]:
        return [row for row in self.versions.get(key, []) if row["version"] == number]
