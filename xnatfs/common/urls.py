"""Compare addresses of servers."""

from urllib.parse import urlsplit

# Those that need not be written.
PORTS = {"http": 80, "https": 443}


def server_key(url: str) -> str:
    """Return what all spellings of a server's URL have in common.

    Scheme and host in lower case, no default port, no slash at the end. The path is that of a file: its case counts.
    """
    text = url.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return text
    if not parts.hostname:
        return text
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = f":{port}" if port is not None and port != PORTS.get(parts.scheme) else ""
    return f"{parts.scheme}://{host}{shown}{parts.path}"


def is_same_server(one: str, other: str) -> bool:
    """Tell whether two URLs are of one server; an empty one is of none."""
    return bool(one.strip()) and server_key(one) == server_key(other)
