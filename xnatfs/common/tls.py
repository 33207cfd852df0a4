"""Whom to trust: the system's authorities, a bundle instead of them, or nobody."""

import ssl

from xnatfs.common.errors import ConfigError


def tls_context(ca_bundle: str, verify: bool) -> ssl.SSLContext:
    """A bundle that is named counts, whatever `verify` says. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=ca_bundle or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA bundle {ca_bundle} holds no certificates in PEM: {error}") from None
    if not verify and not ca_bundle:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
