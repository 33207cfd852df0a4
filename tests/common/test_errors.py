"""Check that both the FUSE and the CLI boundary map every error."""

import errno
from collections.abc import Iterator

from xnatfs.cli.run import EXIT_STATUS, exit_status
from xnatfs.common import errors
from xnatfs.common.errnos import ERRNOS, errno_of
from xnatfs.common.errors import XnatError


def subclasses(kind: type[XnatError]) -> Iterator[type[XnatError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_every_error_has_an_errno_and_an_exit_status_of_its_own_or_of_its_parent():
    for kind in subclasses(XnatError):
        parents = set(kind.__mro__) - {XnatError, Exception, BaseException, object}
        assert parents & ERRNOS.keys(), kind
        assert parents & EXIT_STATUS.keys(), kind


def test_the_tree_in_the_docstring_is_the_tree():
    for kind in subclasses(XnatError):
        assert f" {kind.__name__} " in str(errors.__doc__)


def test_the_errnos_users_are_promised():
    assert errno_of(errors.NotFound("")) == errno.ENOENT
    assert errno_of(errors.Denied("")) == errno.EACCES
    assert errno_of(errors.NotXnat("")) == errno.EIO
    assert errno_of(errors.Stale("")) == errno.ESTALE
    assert errno_of(errors.CacheFull("")) == errno.ENOSPC


def test_the_statuses_users_are_promised():
    promised = {
        errors.ConfigError: 2,
        errors.LoginRequired: 3,
        errors.Unreachable: 4,
        errors.NotXnat: 4,
        errors.MountpointError: 66,
        errors.FuseMissing: 69,
        errors.CacheError: 73,
    }
    assert {kind: exit_status(kind("")) for kind in promised} == promised
