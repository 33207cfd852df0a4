"""Hold the prearchive: received sessions, and how their status changes with time (XNAT REST contract 12).

Nothing runs in the background. Each request first completes the work that is due by then.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from xnatfs.demo.archive.model import Experiment
from xnatfs.demo.archive.vault import Vault
from xnatfs.demo.prearchive.archiver import NotArchived, Overwrite, Target, archive
from xnatfs.demo.server.reply import Failed
from xnatfs.demo.server.site import DemoSite

UNASSIGNED = "Unassigned"
BUILDING, ARCHIVING, MOVING, DELETING = "BUILDING", "ARCHIVING", "MOVING", "DELETING"


@dataclass
class Job:
    """Work on a session. A queued job waits for the first half of its duration; then it locks the session."""

    kind: str
    locks: float
    due: float
    act: Callable[[], str]
    goes_on: bool = False  # archiving follows, if the session is archived automatically
    result: str = ""
    failed: Failed | None = None
    done: bool = False


@dataclass
class Received:
    """A session in the prearchive. `project` is Unassigned if it is unknown."""

    project: str
    timestamp: str
    folder: str
    subject: str
    session: Experiment  # not in the archive yet; its label is the session's
    uploaded: float
    changed: float
    status: str = "RECEIVING"
    built: bool = False
    auto: str = "Manual"  # or AutoArchive, AutoArchiveOverwrite
    overwrite: Overwrite | None = None  # the changes that automatic archiving may make, if a request set them
    direct: bool = False  # bypasses the prearchive, and is not listed there
    said: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    job: Job | None = None

    @property
    def path(self) -> str:
        """Return the path that services take as `src`."""
        return f"/prearchive/projects/{self.project}/{self.timestamp}/{self.folder}"

    def uri(self) -> str:
        return f"/data{self.path}"

    def state(self, now: float) -> str:
        if self.job is None:
            return self.status
        return f"_{self.job.kind}" if now > self.job.locks else f"QUEUED_{self.job.kind}"

    def target(self) -> Target:
        return Target(self.project, self.subject, self.session.label)

    def automatic(self) -> Overwrite:
        """Return the changes that automatic archiving may make to the session with the same label."""
        return self.overwrite or Overwrite("delete" if self.auto == "AutoArchiveOverwrite" else "append", fresh=True)


class Prearchive:
    """All received sessions. Callers must hold the archive's lock, except for methods that wait."""

    def __init__(self, site: DemoSite, vault: Vault) -> None:
        self.site = site
        self.archive = site.archive
        self.vault = vault
        self.clock = site.clock
        self.sessions: list[Received] = []

    # -- time --------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Complete the work that is due."""
        now = self.clock()
        for received in list(self.sessions):
            silence = self.site.work if received.direct else self.site.idle
            if received.job is None and received.status == "RECEIVING" and now - received.changed >= silence:
                job = self.begin(received, BUILDING, partial(self.build, received), received.changed + silence)
                job.goes_on = True
            while received.job is not None and now >= received.job.due:
                self._finish(received, received.job)

    def begin(
        self, received: Received, kind: str, act: Callable[[], str], at: float | None = None, *, queued: bool = True
    ) -> Job:
        """Begin an operation, which `settle` completes after `work` seconds.

        Args:
            received: The session.
            kind: The kind of the operation, such as ARCHIVING.
            act: Performs it, and returns the resulting URI.
            at: The time of its start, in seconds since the epoch; by default now.
            queued: Whether it waits in a queue for half of its duration before it locks the session.
        """
        at = self.clock() if at is None else at
        received.job = Job(kind, at + self.site.work / 2 if queued else 0.0, at + self.site.work, act)
        return received.job

    def _finish(self, received: Received, job: Job) -> None:
        received.job = None
        try:
            job.result = job.act()
        except Failed as failed:
            job.failed = failed
        job.done = True
        automatic = received.direct or received.auto != "Manual"
        if job.goes_on and received.status == "READY" and automatic and received.project != UNASSIGNED:
            act = self.archiving(received, received.target(), received.automatic())
            self.begin(received, ARCHIVING, act, job.due)

    def complete(self, received: Received, kind: str, act: Callable[[], str]) -> str:
        """Run an operation and wait for its end; the caller must not hold the lock.

        Args:
            received: The session.
            kind: The kind of the operation, such as ARCHIVING.
            act: Performs it, and returns the resulting URI.

        Returns:
            The result of `act`.

        Raises:
            Failed: The operation failed, or exceeded `timeout`.
        """
        with self.archive.lock:
            job = self.begin(received, kind, act, queued=False)
            begun = self.clock()
            self.settle()
        while not job.done:
            if self.clock() - begun >= self.site.timeout:
                raise Failed(500, "The operation did not complete within the configured timeout interval")
            self.site.wait(min(job.due - self.clock(), self.site.timeout))
            with self.archive.lock:
                self.settle()
        if job.failed is not None:
            raise job.failed
        return job.result

    # -- work --------------------------------------------------------------------------------------------------

    def build(self, received: Received) -> str:
        received.built = True
        received.changed = self.clock()
        received.status = "READY" if received.session.scans else "ERROR"
        if received.status == "ERROR":
            received.messages.append("The session holds no images")
        return received.uri()

    def archiving(self, received: Received, target: Target, overwrite: Overwrite) -> Callable[[], str]:
        """Return a function that archives a session, and returns its new URI."""

        def act() -> str:
            try:
                if received.project == UNASSIGNED or target.project not in self.archive.projects:
                    raise NotArchived("ERROR", f"Unable to identify project {target.project}")
                made = archive(self.archive, received.session, target, overwrite)
            except NotArchived as error:
                received.status, received.direct = error.status, False
                received.messages.append(str(error))
                raise Failed(409 if error.status == "CONFLICT" else 500, str(error)) from None
            if not received.direct:
                place = f"{received.project}/{received.timestamp}/{received.folder}"
                made.fields["prearchivePath"] = f"/data/xnat/prearchive/{place}"
            self.sessions.remove(received)
            return target.uri()

        return act

    def moving(self, received: Received, project: str) -> Callable[[], str]:
        def act() -> str:
            taken = {other.timestamp for other in self.sessions if other.project == project}
            received.project = project
            if received.timestamp in taken:
                received.timestamp = self.stamp(project, self.clock())
            return received.uri()

        return act

    def deleting(self, received: Received) -> Callable[[], str]:
        def act() -> str:
            self.sessions.remove(received)
            resources = [r for scan in received.session.scans for r in scan.resources] + received.session.resources
            self.vault.drop(entry for resource in resources for entry in resource.entries)
            return ""

        return act

    # -- finding -----------------------------------------------------------------------------------------------

    def find(self, project: str, timestamp: str, folder: str) -> Received | None:
        wanted = (project, timestamp, folder)
        return next((r for r in self.sessions if (r.project, r.timestamp, r.folder) == wanted and not r.direct), None)

    def locked(self, received: Received) -> bool:
        return received.state(self.clock()).startswith("_")

    def edits(self, user: str, received: Received) -> bool:
        """Return true if the user may change the session; only admins may change Unassigned ones."""
        if received.project not in self.archive.projects:
            return self.archive.is_admin(user)
        return self.archive.edits(user, received.project)

    def stamp(self, project: str, now: float) -> str:
        """Return a timestamp for a received session, to the millisecond and unique in its project."""
        taken = {received.timestamp for received in self.sessions if received.project == project}
        while (made := datetime.fromtimestamp(now, UTC).strftime("%Y%m%d_%H%M%S%f")[:-3]) in taken:
            now += 0.001
        return made
