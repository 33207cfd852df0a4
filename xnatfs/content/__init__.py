"""The cache of file bytes: local files that fill while they are read; persistent, bounded, for several processes."""

from xnatfs.content.blob import Blob
from xnatfs.content.cache import ContentCache, Stats, open_cache
from xnatfs.content.source import Body, Source, Version

__all__ = ["Blob", "Body", "ContentCache", "Source", "Stats", "Version", "open_cache"]
