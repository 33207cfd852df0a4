"""Cache file bytes in local files that fill while they are read; persistent, bounded, shared by processes."""

from xnatfs.content.blob import Blob, blob_of
from xnatfs.content.cache import ContentCache, open_cache
from xnatfs.content.source import Body, Head, Source, Version
from xnatfs.content.stats import CacheStats

__all__ = ["Blob", "Body", "ContentCache", "Head", "Source", "CacheStats", "Version", "blob_of", "open_cache"]
