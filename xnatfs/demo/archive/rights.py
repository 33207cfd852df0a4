"""Refuse what a user may not do (XNAT REST contract 14)."""

from xnatfs.demo.archive.model import Archive
from xnatfs.demo.server.reply import Failed


def need_reader(archive: Archive, user: str, project: str, what: str) -> None:
    """Raise Failed unless the user may read the project: 404 if it is invisible, 403 if it is protected."""
    need_visible(archive, user, project)
    if not archive.reads(user, project):
        raise Failed(403, f"Unable to read {what} for Project: {project}")


def need_visible(archive: Archive, user: str, project: str) -> None:
    """Raise Failed (404) unless the project exists and the user may know that."""
    if project not in archive.projects or not archive.sees(user, project):
        raise Failed(404, f"Unable to identify project: {project}")


def need_editor(archive: Archive, user: str, project: str) -> None:
    """Raise Failed (403) unless the user may change data of the project."""
    if not archive.edits(user, project):
        raise Failed(403, f"Specified user account has insufficient privileges for project {project}.")


def need_owner(archive: Archive, user: str, project: str) -> None:
    """Raise Failed (403) unless the user may delete data of the project, and change its settings."""
    if not archive.deletes(user, project):
        raise Failed(403, "User account has insufficient privileges to delete this.")


def need_admin(archive: Archive, user: str) -> None:
    """Raise Failed (403) unless the user may do anything on the site."""
    if not archive.is_admin(user):
        raise Failed(403, "Forbidden")
