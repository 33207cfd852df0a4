"""Map httpx transport errors, and the causes behind them, to exceptions and error texts of xnatfs."""

import errno
import os
import ssl
from collections.abc import Iterator

import httpx

from xnatfs.common.errors import NoRoute, TimedOut, Unreachable, first_error

# Error numbers that mean a timeout, and those that mean that the host is unreachable.
TIMEOUT_ERRNOS = frozenset({errno.ETIMEDOUT})
NO_ROUTE_ERRNOS = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ECONNREFUSED}
)
# The status by which a proxy, and never the server, requires a login.
PROXY_LOGIN_STATUS = httpx.codes.PROXY_AUTHENTICATION_REQUIRED.value


def _reason(error: httpx.TransportError) -> str:
    """Return the text of an error that follows the server's name, with a remedy where one is known."""
    text = str(error) or type(error).__name__
    causes = list(_causes(error))
    untrusted = next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted or "CERTIFICATE_VERIFY_FAILED" in text:
        why = getattr(untrusted, "verify_message", text)
        return f"is not trusted: its TLS certificate cannot be verified ({why}); name its authority with --ca-bundle"
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if tls:
        why = getattr(tls, "reason", "") or tls
        return f"does not accept a TLS connection ({why}): is it an http:// address, or another port?"
    if isinstance(error, httpx.ProxyError):
        return f"cannot be reached through the proxy: {_proxy_text(text)}"
    if isinstance(error, httpx.ConnectError):
        system = (cause for cause in causes if isinstance(cause, OSError) and cause.errno)
        return f"cannot be reached: {next((_system_text(cause) for cause in system), text)}"
    if isinstance(error, httpx.TimeoutException):
        return f"does not answer in time ({type(error).__name__})"
    return f"failed: {text}"


def _proxy_text(text: str) -> str:
    if not text.startswith(str(PROXY_LOGIN_STATUS)):
        return text
    return (
        f"it requires a login, or another one ({text}): set HTTP_PROXY and HTTPS_PROXY to "
        "http://USER:PASSWORD@PROXY:PORT, with a % code for each special character of the password"
    )


async def refuse_proxy_login(response: httpx.Response) -> None:
    """Raise httpx.ProxyError where a proxy requires a login, as httpx does for tunnels (CONNECT)."""
    if response.status_code == PROXY_LOGIN_STATUS:
        text = f"{PROXY_LOGIN_STATUS} {response.reason_phrase or httpx.codes.get_reason_phrase(PROXY_LOGIN_STATUS)}"
        raise httpx.ProxyError(text, request=response.request)


def unreachable(error: httpx.TransportError, where: str) -> Unreachable:
    """Return the exception of xnatfs for an error on the way to `where`, or on the way back."""
    return _kind(error)(f"{where} {_reason(error)}")


def _kind(error: httpx.TransportError) -> type[Unreachable]:
    """Return the exception class for an error: no answer in time, no connection, or a connection that broke."""
    numbers = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
    if isinstance(error, httpx.TimeoutException) or numbers & TIMEOUT_ERRNOS:
        return TimedOut
    no_route = httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol
    if isinstance(error, no_route) or numbers & NO_ROUTE_ERRNOS:
        return NoRoute
    return Unreachable


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and its causes, down to the root."""
    while error is not None:
        error = first_error(error)
        yield error
        error = error.__cause__ or error.__context__


def _system_text(error: OSError) -> str:
    """Return the system's text for an error: 'Connection refused', 'Name or service not known'."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


def is_permanent(error: BaseException) -> bool:
    """Return whether a retry would fail, too: TLS, a proxy or the URL itself is at fault."""
    permanent = (httpx.ProxyError, httpx.UnsupportedProtocol, ssl.SSLError)
    return any(isinstance(cause, permanent) for cause in _causes(error))
