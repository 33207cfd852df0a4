"""Test every wrong input: one line that no other cause prints, the exit status of its kind, and nothing left behind."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import pytest

from tests.support.failing import AS_STRANGER, DEAD, OPEN_FUSE, Desk, Page, Refusing, desk, serving, silent

OPTION, LOGIN, NETWORK, MOUNTPOINT, FUSE, CACHE = 2, 3, 4, 66, 69, 73


def nothing(desk: Desk) -> AbstractContextManager[str]:
    return nullcontext(DEAD)


def server(make: Callable[[], AbstractContextManager[str]]) -> Callable[[Desk], AbstractContextManager[str]]:
    return lambda desk: make()


def page() -> AbstractContextManager[str]:
    return serving(Page)


def text(path: str, content: str = "") -> Callable[[Desk], AbstractContextManager[str]]:
    """Write a file below the desk."""

    def write(desk: Desk) -> AbstractContextManager[str]:
        (desk.root / path).parent.mkdir(parents=True, exist_ok=True)
        (desk.root / path).write_text(content)
        return nullcontext(DEAD)

    return write


def strange(desk: Desk) -> AbstractContextManager[str]:
    """Give the desk to its user, except for one directory, which belongs to root."""
    desk.belongs_to_stranger()
    (desk.root / "roots").mkdir(mode=0o755)
    (desk.root / "closed").mkdir(mode=0o700)
    return nullcontext(DEAD)


@contextmanager
def untrusted(desk: Desk) -> Iterator[str]:
    from tests.http.test_failures import made_certificate
    from tests.support.demos import serving as demo

    with demo(certificate=made_certificate(desk.root)) as served:
        yield served.url


@contextmanager
def expired_password(desk: Desk) -> Iterator[str]:
    from tests.support.demos import serving as demo
    from xnatfs.demo.server.reply import page as said

    with demo() as served:
        text = "Your password has expired. Please change it."
        served.app.faults.append(lambda request: None if "buildInfo" in request.path else said(text, 200))
        yield served.url


@contextmanager
def plain_for_tls(desk: Desk) -> Iterator[str]:
    with page() as url:
        yield url.replace("http:", "https:")


@contextmanager
def page_and_full_disk(desk: Desk) -> Iterator[str]:
    (desk.root / "disk").mkdir()
    with page() as url:
        yield url


@contextmanager
def page_and_strange_cache(desk: Desk) -> Iterator[str]:
    with strange(desk), page() as url:
        yield url


@dataclass(frozen=True)
class Case:
    """A mistake: {url}, {place} and {root} in its arguments are the stage's; `says` is found in this line only."""

    name: str
    status: int
    says: str
    arguments: str
    stage: Callable[[Desk], AbstractContextManager[str]] = nothing
    within: str = ""  # a shell command around ours, in a mount namespace
    variables: tuple[tuple[str, str], ...] = ()


MOUNT = "mount --url {url} {place}"
STRANGER = f'{OPEN_FUSE}; exec {AS_STRANGER} "$@"'

CASES = [
    # -- options, profiles, YAML -------------------------------------------------------------------------------
    Case("a command there is none of", OPTION, "there is no command 'frobnicate' \\(see", "frobnicate"),
    Case("a misspelt command", OPTION, "there is no command 'muont': did you mean mount\\?", "muont"),
    Case("a misspelt option", OPTION, "--tll: did you mean --ttl\\?", "mount --tll 5 {place}"),
    Case("no mountpoint", OPTION, "the following arguments are required: MOUNTPOINT", "mount --url {url}"),
    Case("no server", OPTION, "which XNAT?", "mount {place}"),
    Case(
        "URL without scheme",
        OPTION,
        "'xnat.example.org' is not the URL of a server",
        "mount --url xnat.example.org {place}",
    ),
    Case(
        "URL with a port that is none",
        OPTION,
        "is not a URL: [Pp]ort",
        "mount --url http://xnat.example.org:x1 {place}",
    ),
    Case("URL with a query", OPTION, "must end after the path", "mount --url http://xnat.example.org/?a=1 {place}"),
    Case("URL with a password", OPTION, "must not hold a user or a password", "mount --url https://u:p@x.org {place}"),
    Case("two servers", OPTION, "not allowed with", "mount --url {url} --profile x {place}"),
    Case("unknown profile", OPTION, "profile 'nobody' is not in", "mount --profile nobody {place}"),
    Case(
        "profile without URL",
        OPTION,
        "profile 'p' .*has no url",
        "mount --profile p {place}",
        text("home/.config/xnatctl/config.yaml", "profiles: {p: {username: u}}\n"),
    ),
    Case(
        "broken YAML",
        OPTION,
        "config.yaml line 2 is not valid YAML",
        "mount {place}",
        text("home/.config/xnatctl/config.yaml", "profiles: [\n"),
    ),
    Case(
        "YAML that is no mapping",
        OPTION,
        "does not hold a mapping with 'profiles:'",
        "mount {place}",
        text("home/.config/xnatctl/config.yaml", "- a\n"),
    ),
    Case(
        "profile that is no mapping",
        OPTION,
        "profile 'p' is not a mapping",
        "mount {place}",
        text("home/.config/xnatctl/config.yaml", "profiles: {p: 1}\n"),
    ),
    Case(
        "profile with a switch that is none",
        OPTION,
        "verify_ssl of profile 'p'",
        "mount {place}",
        text("home/.config/xnatctl/config.yaml", "profiles: {p: {verify_ssl: maybe}}\n"),
    ),
    Case(
        "broken netrc",
        OPTION,
        "cannot read ~/.netrc",
        MOUNT,
        text("home/.netrc", "frobnicate\n"),
        variables=(("XNAT_PASS", ""),),
    ),
    Case("size", OPTION, "'much' is not a size", "mount --url {url} --cache-size much {place}"),
    Case("negative time", OPTION, "--ttl: '-1' is not a time", "mount --url {url} --ttl=-1 {place}"),
    Case("time that is none", OPTION, "--ttl: 'nan' is not a time", "mount --url {url} --ttl nan {place}"),
    Case("no time at all", OPTION, "--timeout: must be more than 0", "mount --url {url} --timeout 0 {place}"),
    Case("mask", OPTION, "'9' is not an octal mask", "mount --url {url} --umask 9 {place}"),
    Case("owner", OPTION, "'root' is not a numeric ID", "mount --url {url} --uid root {place}"),
    Case("log level", OPTION, "invalid choice: 'loud'", "mount --url {url} --log-level loud {place}"),
    Case(
        "unknown option",
        OPTION,
        "unrecognized option --no-such-option",
        "mount --url {url} --no-such-option {place}",
    ),
    Case(
        "unknown option of -o",
        OPTION,
        "-o no_such_option: no such option",
        "mount --url {url} -o no_such_option {place}",
    ),
    Case("value of -o", OPTION, "-o ttl: .*'soon' is not a time", "mount --url {url} -o ttl=soon {place}"),
    Case(
        "bundle",
        OPTION,
        "the CA bundle /nowhere.pem is not a file",
        "mount --url {url} --ca-bundle /nowhere.pem {place}",
    ),
    Case(
        "bundle without certificates",
        OPTION,
        "holds no certificates",
        "mount --url {url} --ca-bundle {root}/b.pem {place}",
        text("b.pem", "hello\n"),
    ),
    Case("demo user", OPTION, "--as nobody: the demo has the users", "demo --as nobody {place}"),
    Case("demo data", OPTION, "the demo server does not start: .*holds no PROJECT", "demo --data {place} {place}"),
    # -- logins ------------------------------------------------------------------------------------------------
    Case(
        "no login",
        LOGIN,
        "no user and password for .*XNAT_USER and XNAT_PASS",
        MOUNT,
        variables=(("XNAT_USER", ""), ("XNAT_PASS", "")),
    ),
    Case("no password", LOGIN, "no password for .*XNAT_USER and XNAT_PASS", MOUNT, variables=(("XNAT_PASS", ""),)),
    Case(
        "refused",
        LOGIN,
        "wrong user or password, a locked account, or too many sessions",
        MOUNT,
        server(lambda: serving(Refusing)),
    ),
    Case(
        "password expired",
        LOGIN,
        "answered the login of u with a page.*the password has expired",
        MOUNT,
        expired_password,
    ),
    # -- the network -------------------------------------------------------------------------------------------
    Case("wrong port", NETWORK, "cannot be reached: Connection refused", MOUNT),
    Case(
        "no such host",
        NETWORK,
        "cannot be reached: .*([Nn]ame|resolution|address associated)",
        "mount --url https://xnat.invalid {place}",
    ),
    Case("a host without a word", NETWORK, "does not answer", "mount --timeout 1 --url {url} {place}", server(silent)),
    Case("no XNAT", NETWORK, "is not an XNAT", MOUNT, server(page)),
    Case("no TLS", NETWORK, "does not accept a TLS connection", MOUNT, plain_for_tls),
    Case("not trusted", NETWORK, "is not trusted.*--ca-bundle", MOUNT, untrusted),
    # -- mountpoints -------------------------------------------------------------------------------------------
    Case("missing", MOUNTPOINT, "none does not exist", "mount --url {url} {root}/none"),
    Case("a file", MOUNTPOINT, "file is not a directory", "mount --url {url} {root}/file", text("file")),
    Case("not empty", MOUNTPOINT, "full is not empty", "mount --url {url} {root}/full", text("full/file")),
    Case("mounted already", MOUNTPOINT, "/proc is a mountpoint already", "mount --url {url} /proc"),
    Case(
        "not ours to write",
        MOUNTPOINT,
        "roots may not be written to",
        "mount --url {url} {root}/roots",
        strange,
        STRANGER,
    ),
    Case(
        "not ours to read",
        MOUNTPOINT,
        "closed may not be read",
        "mount --url {url} {root}/closed",
        strange,
        STRANGER.replace("+dac_read_search", "-all"),
    ),
    Case("the demo's is missing", MOUNTPOINT, "nowhere does not exist", "demo {root}/nowhere"),
    Case("no mount to unmount", MOUNTPOINT, "is not a mount of xnatfs", "umount {place}"),
    # -- FUSE --------------------------------------------------------------------------------------------------
    Case("no /dev/fuse", FUSE, "/dev/fuse is missing", MOUNT, within='mount -t tmpfs none /dev; exec "$@"'),
    Case(
        "/dev/fuse not ours to open",
        FUSE,
        "/dev/fuse may not be opened",
        MOUNT,
        strange,
        STRANGER.replace("666", "600"),
    ),
    Case("no fusermount3", FUSE, "fusermount3 is missing", MOUNT, variables=(("PATH", "/nowhere"),)),
    # -- the cache ---------------------------------------------------------------------------------------------
    Case(
        "below a file",
        CACHE,
        "file/cache.* cannot be used: Not a directory",
        "mount --url {url} --cache-dir {root}/file/cache {place}",
        text("file"),
    ),
    Case(
        "not writable",
        CACHE,
        "roots.* cannot be used: Permission denied",
        "mount --url {url} --cache-dir {root}/roots/cache {place}",
        page_and_strange_cache,
        STRANGER,
    ),
    Case(
        "full disk",
        CACHE,
        "cannot be used: .*(No space left|disk is full)",
        "mount --url {url} --cache-dir {root}/disk {place}",
        page_and_full_disk,
        'mount -t tmpfs -o size=64k none "$DISK"; head -c 64k /dev/zero >"$DISK/big" || true; exec "$@"',
    ),
    Case("log not writable", CACHE, "cannot write the log /proc/log", "mount --url {url} --log-file /proc/log {place}"),
]


def line_of(case: Case) -> str:
    with ExitStack() as stack:
        sitting = stack.enter_context(desk())
        url = stack.enter_context(case.stage(sitting))
        arguments = case.arguments.format(url=url, place=sitting.place, root=sitting.root).split()
        variables = {"DISK": str(sitting.root / "disk"), **dict(case.variables)}
        return sitting.fails(case.status, *arguments, within=case.within, **variables)


@pytest.mark.fuse
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_told_in_a_line_of_its_own(case):
    line = line_of(case)
    assert [other.name for other in CASES if re.search(other.says, line)] == [case.name], line
