"""Make certificates for a server on this machine: a good one and an expired one."""

import subprocess
from pathlib import Path

NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost"


def made_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1, and its key."""
    return _made(directory, "certificate", 2)


def expired_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1 that has expired, and its key."""
    return _made(directory, "expired", -1)


def _made(directory: Path, name: str, days: int) -> tuple[Path, Path]:
    made, key, request = (directory / f"{name}{ending}.pem" for ending in ("", "-key", "-request"))
    # An elliptic curve: its key takes a millisecond to make.
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl("req", *kind, "-subj", "/CN=127.0.0.1", "-addext", NAMES, "-keyout", key, "-out", request)
    # `req -x509` refuses to make one that is over.
    validity = ["-days", str(days), "-copy_extensions", "copy"]
    _openssl("x509", "-req", "-in", request, "-signkey", key, *validity, "-out", made)
    return made, key


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
