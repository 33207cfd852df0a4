"""Compare the URLs of servers."""

from urllib.parse import urlsplit

# The default port of each scheme, which a URL may omit.
DEFAULT_PORTS = {"http": 80, "https": 443}


def server_key(url: str) -> str:
    """Return the canonical form of a server's URL.

    Scheme and host are in lower case; a default port and a trailing slash are removed. Case matters in the path.
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
    shown = f":{port}" if port is not None and port != DEFAULT_PORTS.get(parts.scheme) else ""
    return f"{parts.scheme}://{host}{shown}{parts.path}"


def is_same_server(one: str, other: str) -> bool:
    """Return whether two URLs mean the same server; an empty URL means none."""
    return bool(one.strip()) and server_key(one) == server_key(other)
