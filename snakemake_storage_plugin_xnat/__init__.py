"""Read `xnat://` in Snakemake: `storage("xnat://HOST/projects/...")` as the input of a rule.

It is an adapter of `xnatfs.api.filesystem` to Snakemake's interface: the login, the cache and the errors are those of
`xnat://` anywhere else. The server is read only; results are written elsewhere. Snakemake finds the module by its name.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from snakemake_interface_storage_plugins.io import IOCacheStorageInterface, Mtime, get_constant_prefix
from snakemake_interface_storage_plugins.settings import StorageProviderSettingsBase
from snakemake_interface_storage_plugins.storage_object import StorageObjectGlob, StorageObjectRead
from snakemake_interface_storage_plugins.storage_provider import (
    ExampleQuery,
    QueryType,
    StorageProviderBase,
    StorageQueryValidationResult,
)

from xnatfs.api.endpoint import SCHEMES, locate
from xnatfs.api.filesystem import XnatFileSystem

# Snakemake asks for a limit; it is not used, since the client of a server limits its own requests.
MAX_REQUESTS_PER_SECOND = 10.0


@dataclass
class StorageProviderSettings(StorageProviderSettingsBase):  # type: ignore[misc]
    """The options of the storage provider, `--storage-xnat-...`."""

    token_file: str | None = field(
        default=None, metadata={"help": "File with username= and password=, which only you can read."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Directory of the cache (default: ~/.cache/xnatfs)."})
    shared_cache: str | None = field(
        default=None, metadata={"help": "Directory of verified files that several machines share."}
    )


class StorageProvider(StorageProviderBase):  # type: ignore[misc]
    """The servers that queries name."""

    def __post_init__(self) -> None:
        settings = self.settings or StorageProviderSettings()
        given = {name: getattr(settings, name) for name in ("token_file", "cache_dir", "shared_cache")}
        self._options = {name: value for name, value in given.items() if value}

    @classmethod
    def example_queries(cls) -> list[ExampleQuery]:
        session = "xnat://xnat.example.org/projects/MYPROJECT/SUB001/SUB001_MR1"
        return [
            ExampleQuery(f"{session}/scans/1/NIFTI/t1.nii.gz", "A file of a scan", QueryType.INPUT),
            ExampleQuery(f"{session}/scans/1/DICOM", "All files of a resource, as a directory", QueryType.INPUT),
        ]

    @classmethod
    def is_valid_query(cls, query: str) -> StorageQueryValidationResult:
        scheme, _, rest = query.partition("://")
        if scheme not in SCHEMES or not rest.partition("/")[0]:
            reason = "it must begin with xnat://HOST/ or xnat+http://HOST/"
            return StorageQueryValidationResult(query, False, reason)
        if locate(query).path == "/":
            return StorageQueryValidationResult(query, False, "it must name a file, as in xnat://HOST/projects/...")
        return StorageQueryValidationResult(query, True)

    def rate_limiter_key(self, query: str, operation: Any) -> str:
        return locate(query).url

    def default_max_requests_per_second(self) -> float:
        return MAX_REQUESTS_PER_SECOND

    def use_rate_limiter(self) -> bool:
        return False

    def file_system(self, query: str) -> XnatFileSystem:
        """Return the file system of a query's server."""
        return XnatFileSystem(locate(query).url, **self._options)


class StorageObject(StorageObjectRead, StorageObjectGlob):  # type: ignore[misc]
    """A file or directory on a server."""

    def __post_init__(self) -> None:
        self._fs = self.provider.file_system(self.query)

    def local_suffix(self) -> str:
        found = locate(self.query)
        return found.url.partition("://")[2] + found.path

    def get_inventory_parent(self) -> str | None:
        return None

    async def inventory(self, cache: IOCacheStorageInterface) -> None:
        key = self.cache_key()
        cache.exists_in_storage[key] = self.exists()
        if cache.exists_in_storage[key]:
            cache.mtime[key] = Mtime(storage=self.mtime())
            cache.size[key] = self.size()

    def cleanup(self) -> None:
        """Leave the cache as it is: it is that of the mounts."""

    def exists(self) -> bool:
        return bool(self._fs.exists(self.query))

    def mtime(self) -> float:
        return self._fs.info(self.query)["mtime"] or 0.0

    def size(self) -> int:
        return int(self._fs.info(self.query)["size"])

    def local_footprint(self) -> int:
        return int(self._fs.du(self.query))

    def checksum(self) -> str | None:
        digest = self._fs.info(self.query).get("digest")
        return f"md5:{digest}" if digest else None

    def retrieve_object(self) -> None:
        self._fs.get(self.query, os.fspath(self.local_path()), recursive=self._fs.isdir(self.query))

    def list_candidate_matches(self) -> Iterable[str]:
        prefix = get_constant_prefix(self.query, strip_incomplete_parts=True)
        return [self._fs.unstrip_protocol(path) for path in self._fs.find(prefix)]
