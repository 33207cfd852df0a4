"""Record which items a client has changed, for mounts of the same server to look at them again."""

import re
from collections.abc import Iterable
from urllib.parse import unquote

# Of a URL, or of a parameter that is one: "/data/projects/P", "/archive/projects/P/subjects/S/experiments/E".
_PROJECT = re.compile(r"/projects/([^/?&\s]+)")
_EXPERIMENT = re.compile(r"/experiments/([^/?&\s]+)")
# Parameters that name a project.
PROJECT_PARAMETERS = ("project", "PROJECT_ID")
# In place of a project: any of them may have changed.
ANY_PROJECT = "*"


class ChangedItems:
    """IDs of the projects and experiments that changes were sent for."""

    def __init__(self) -> None:
        self.projects: set[str] = set()
        self.experiments: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.projects or self.experiments)

    def note(self, *texts: str, parameters: Iterable[tuple[str, str]] = ()) -> None:
        """Record a change.

        Args:
            texts: The URL, and what the server has answered.
            parameters: The query and the form.
        """
        pairs = list(parameters)
        projects = {value for key, value in pairs if key in PROJECT_PARAMETERS and value}
        experiments: set[str] = set()
        for text in (*texts, *(value for _, value in pairs)):
            projects.update(map(unquote, _PROJECT.findall(text)))
            experiments.update(map(unquote, _EXPERIMENT.findall(text)))
        self.projects |= projects or ({ANY_PROJECT} if not experiments else set())
        self.experiments |= experiments
