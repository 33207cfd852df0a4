"""Name the version of a file by its row in a listing."""

from xnatfs.content import Version
from xnatfs.rest.models import FileRow


def version(row: FileRow) -> Version:
    """Return the version by which the content cache knows a file; its folder there is the resource's number."""
    return Version(f"{row.resource_id}/{row.path}", row.size, row.digest)
