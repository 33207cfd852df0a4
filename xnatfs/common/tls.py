"""Choose the trusted certificate authorities: the system's, a bundle in their place, or none."""

import ssl

from xnatfs.common.errors import ConfigError


def tls_context(ca_bundle: str, verify: bool) -> ssl.SSLContext:
    """Create a TLS context that verifies servers.

    Args:
        ca_bundle: The path of a PEM file with authorities to trust in place of the system's, or ''.
        verify: False to accept any certificate. It has no effect where a bundle is named.

    Raises:
        ConfigError: The bundle cannot be read, or holds no certificates.
    """
    try:
        context = ssl.create_default_context(cafile=ca_bundle or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA bundle {ca_bundle} holds no certificates in PEM: {error}") from None
    if not verify and not ca_bundle:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
