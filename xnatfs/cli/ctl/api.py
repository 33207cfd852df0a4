"""Run api GET|POST|PUT|DELETE: raw requests."""

import codecs
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from xnatfs.cli import statusline
from xnatfs.cli.ctl.command import Command, Context, option, options_of
from xnatfs.cli.output import printable
from xnatfs.common.errors import ConfigError


async def api(context: Context) -> int:
    """Send a request once, without retries, and write the raw body of its reply to stdout."""
    arguments = context.arguments
    path, body = _with_query(arguments.path, arguments.params), _body(arguments.data, arguments.file)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async with context.xnat() as xnat:
        async for chunk in xnat.raw(arguments.command.verb, path, body, arguments.content_type):
            statusline.hide()
            if sys.stdout.isatty():
                sys.stdout.write(printable(decoder.decode(chunk)))
            else:
                sys.stdout.buffer.write(chunk)
    sys.stdout.flush()
    return 0


def _with_query(path: str, params: Sequence[str]) -> str:
    if not all("=" in pair for pair in params):
        raise ConfigError("--params: must be KEY=VALUE")
    query = urlencode([(key, value) for key, _, value in (pair.partition("=") for pair in params)])
    return path + ("&" if "?" in path else "?") + query if query else path


def _body(data: str | None, file: str | None) -> bytes:
    data = f"@{file}" if file else data or ""
    try:
        if data == "@-":
            return sys.stdin.buffer.read()
        return Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
    except OSError as error:
        raise ConfigError(f"--data {data}: {error.strerror}") from None


request_options = options_of(
    option("path", metavar="PATH", help="from the server's root, as /data/projects?format=json"),
    option("--params", action="append", default=[], metavar="KEY=VALUE", help="for the query; repeatable"),
    lambda parser: parser.set_defaults(data=None, file=None, content_type=None),
)
body_options = options_of(
    request_options,
    option("-d", "--data", metavar="TEXT", help="the body, or @FILE, or @- for standard input"),
    option("-f", "--file", metavar="FILE", help="the same as -d @FILE"),
    option("--content-type", metavar="TYPE", help="type of the body"),
)

EXAMPLES = {
    "GET": ("'/data/projects?format=json'", request_options),
    "POST": ("/data/projects/P/subjects -d @subject.xml", body_options),
    "PUT": ("/data/projects/P/subjects/SUB001", body_options),
    "DELETE": ("/data/projects/P/subjects/SUB001", request_options),
}
COMMANDS = [
    Command(
        "api",
        method,
        f"send one {method} request, and print the body of the reply",
        f"xnatctl api {method} {words}",
        api,
        options,
        aliases=(method.lower(),),
    )
    for method, (words, options) in EXAMPLES.items()
]
