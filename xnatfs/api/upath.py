"""Make `UPath("xnat://...")` a path of universal_pathlib."""

from upath import UPath

from xnatfs.api.endpoint import file_url, locate


class XnatPath(UPath):
    """A path on a server, read-only. Programs that want a path of this machine get one from `fs.local(path)`."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the URL with its host, which only the storage options hold; of a relative path, that path."""
        if self._relative_base is not None:
            return super().__str__()
        return file_url(locate(self.storage_options["url"]).url, self.path)
