"""Mount in a mount namespace of its own, which ends with the processes in it: namespaces(7), user_namespaces(7).

Such a mount needs neither root nor fusermount3, and the kernel removes it when the last process in the namespace has
ended, whichever way that happens. The descriptor of /dev/fuse is served by a process outside the namespace: that ends
by itself when the mount is gone.
"""

import ctypes
import os
import select
import signal
import sys
from pathlib import Path

from xnatfs.common.errors import NamespaceError

# unshare(2), from linux/sched.h.
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
# mount(2), from linux/mount.h.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REC, MS_SLAVE = 1, 2, 4, 1 << 14, 1 << 19
# prctl(2), from linux/prctl.h.
PR_SET_PDEATHSIG = 1


def mount_in_namespace(mountpoint: Path, source: str) -> int:
    """Move this process to a mount namespace of its own, and mount there; return the descriptor to serve.

    A process that may mount keeps its user namespace; any other gets one in which it keeps its user and group. This
    must be the only thread of the process.

    Args:
        mountpoint: An existing directory.
        source: The name of the mount, the URL of the server.

    Raises:
        NamespaceError: The kernel refuses the namespace or the mount.
    """
    user, group = _make_namespace()
    try:
        # The kernel requires that the namespace which mounts has opened the device, too.
        descriptor = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        raise NamespaceError(f"/dev/fuse cannot be opened: {error.strerror}") from None
    options = f"fd={descriptor},rootmode=40000,user_id={user},group_id={group},default_permissions"
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    try:
        _call("mount", source.encode(), os.fsencode(mountpoint), b"fuse.xnatfs", flags, options.encode())
    except OSError as error:
        os.close(descriptor)
        raise NamespaceError(f"{mountpoint} cannot be mounted on in a namespace: {error.strerror}") from None
    return descriptor


def _make_namespace() -> tuple[int, int]:
    """Move this process to a mount namespace of its own; return its user and group. Raises NamespaceError."""
    user, group = os.getuid(), os.getgid()
    try:
        try:
            _call("unshare", CLONE_NEWNS)
        except PermissionError:
            _call("unshare", CLONE_NEWNS | CLONE_NEWUSER)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        # Mounts made outside later still appear inside, and none of ours appears outside.
        _call("mount", None, b"/", None, MS_REC | MS_SLAVE, None)
    except OSError as error:
        hint = "this machine does not allow unprivileged user namespaces; ask its administrator, or use xnatfs mount"
        raise NamespaceError(f"no mount namespace can be made: {error.strerror} ({hint})") from None
    return user, group


def check_namespaces() -> None:
    """Raise NamespaceError unless this user can make a mount namespace. A child process tries it."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reasons:
        if not (child := os.fork()):
            try:
                _make_namespace()
            except BaseException as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        reason = reasons.read().decode()
    os.waitpid(child, 0)
    if reason:
        raise NamespaceError(reason)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this signal to this process when its parent ends.

    A parent that has ended before is not noticed.
    """
    _call("prctl", PR_SET_PDEATHSIG, ctypes.c_ulong(int(number)))


def is_abandoned(pipe: int) -> bool:
    """Return whether the process at the other end of a pipe that this one writes to has ended."""
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises OSError."""
    if sys.platform != "linux":
        raise NamespaceError("a mount needs Linux; xnatctl works here")
    library = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(each) if name == "mount" and isinstance(each, int) else each for each in arguments]
    if getattr(library, name)(*words):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
