"""Write docs/cli, docs/man and docs/CONFIGURATION.md from the parsers: python -m scripts.reference.

The pages are rendered from the parsers' actions and not from `--help`, whose form changes with Python's version.
"""

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts import manual
from xnatfs.cli.commands import add_commands
from xnatfs.cli.ctl.main import NOUNS, build
from xnatfs.cli.parsing import COMMON_OPTIONS_TITLE as COMMON
from xnatfs.cli.parsing import STATUS_TEXTS, CommandParser

DOCS = Path(__file__).parent.parent / "docs"
NOTE = "This page is written by `python -m scripts.reference`."

# The keys of the profile file. A test compares them with the fields of Profile.
PROFILE = {
    "url": "the server",
    "username": "the account",
    "password": "its password; better in the keyring",
    "password_source": "`keyring` takes the password from the keyring",
    "provider": "the login method, where the site has several",
    "verify_ssl": "`false` accepts any certificate",
    "ca_bundle": "a file of certificate authorities, instead of the system's",
    "default_project": "the project of commands without `-P`",
    "timeout": "seconds without progress after which a request of `xnatctl` fails (default: 21600)",
    "workers": "the number of parallel transfers",
    "overwrite": "the default of `--overwrite` of `xnatctl session upload`: `none`, `append` or `delete`",
    "archive_mode": "how `xnatctl session upload` packs files",
    "direct_archive": "`true` uploads to the archive, bypassing the prearchive",
}
# A test compares them with the variables that the code reads.
ENVIRONMENT = {
    "XNAT_URL": "the server, instead of the profile's",
    "XNAT_PROFILE": "the profile",
    "XNAT_USER": "the account, on the server of `XNAT_URL` if that is set",
    "XNAT_PASS": "its password",
    "XNAT_TOKEN": "a session (JSESSIONID) to use, on the server of `XNAT_URL` if that is set",
    "XNATCTL_LOG_FILE": "the log file of `xnatctl`",
    "XNATCTL_DEBUG": "if it is set, `xnatctl` prints the traceback of an error",
    "XDG_CACHE_HOME": "the directory of caches (default: `~/.cache`)",
    "XDG_CONFIG_HOME": "the directory of systemd units, for `xnatfs install-unit` (default: `~/.config`)",
    "XDG_STATE_HOME": "the directory of upload journals (default: `~/.local/state`)",
}


@dataclass(frozen=True)
class Verb:
    """One command: its words, its summary, its arguments by group, and its example."""

    words: str
    summary: str
    arguments: list[tuple[str, str]]  # positional ones: name, help
    groups: list[tuple[str, list[tuple[str, str]]]]  # title, options with their help
    example: str = ""
    aliases: tuple[str, ...] = ()


@dataclass
class Page:
    """The commands of one noun of xnatctl, or one command of xnatfs."""

    name: str  # as man(1) finds it: xnatctl-session
    summary: str
    verbs: list[Verb] = field(default_factory=list)
    aliases: tuple[str, ...] = ()


def pages() -> list[Page]:
    """Return every page, in the order of the parsers."""
    xnatfs: argparse.ArgumentParser = CommandParser(prog="xnatfs", allow_abbrev=False)
    commands = xnatfs.add_subparsers()
    add_commands(commands)
    found = [
        Page(f"xnatfs-{verb}", summary, [_verb(parser, summary)], _aliases(commands, verb))
        for verb, summary, parser in _children(commands)
    ]
    xnatctl = CommandParser(prog="xnatctl", allow_abbrev=False)
    build(xnatctl)
    for noun, summary, parser in _children(_subparsers(xnatctl)):
        below = next(iter(_all_subparsers(parser)), None)
        page = Page(f"xnatctl-{noun}", NOUNS.get(noun, summary), aliases=_aliases(_subparsers(xnatctl), noun))
        if below is None:
            page.verbs.append(_verb(parser, summary))
        else:
            page.verbs.extend(_verb(each, text, _aliases(below, name)) for name, text, each in _children(below))
        found.append(page)
    return found


def _subparsers(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    return next(iter(_all_subparsers(parser)))


def _all_subparsers(
    parser: argparse.ArgumentParser,
) -> "Iterator[argparse._SubParsersAction[argparse.ArgumentParser]]":
    return (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _children(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield the name, the help and the parser of each command; an alias shares the parser of the preceding name."""
    for choice in commands._choices_actions:
        name = choice.dest
        yield name, choice.help or "", commands.choices[name]


def _aliases(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str) -> tuple[str, ...]:
    """Return the other names of a command."""
    return tuple(each for each, parser in commands.choices.items() if parser is commands.choices[name] and each != name)


def _verb(parser: argparse.ArgumentParser, summary: str, aliases: tuple[str, ...] = ()) -> Verb:
    arguments, groups = [], []
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        options = [(_flags(action), _help(action)) for action in shown if action.option_strings]
        arguments += [(_value(action), _help(action)) for action in shown if not action.option_strings]
        options = [(flags, text) for flags, text in options if flags != "-h, --help"]
        if options:
            groups.append(
                ("options" if group.title in ("options", "optional arguments") else group.title or "", options)
            )
    example = (parser.epilog or "").removeprefix("example: ").removeprefix("examples:").strip()
    return Verb(parser.prog, summary, arguments, groups, example, aliases)


def _value(action: argparse.Action) -> str:
    name = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    name = " ".join(name) if isinstance(name, tuple) else name
    return f"[{name}]" if action.nargs == "?" else f"[{name} ...]" if action.nargs == "*" else name


def _flags(action: argparse.Action) -> str:
    flags = ", ".join(action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {_value(action)}"


def _help(action: argparse.Action) -> str:
    values = {**vars(action), "choices": ", ".join(map(str, action.choices or ()))}
    return (action.help or "") % values


def markdown(page: Page) -> str:
    """Return a page of docs/cli."""
    parts = [f"# {page.name.replace('-', ' ', 1)}", f"{_sentence(page.summary)} {NOTE}"]
    if page.aliases:
        parts.append(f"Other names: {', '.join(f'`{name}`' for name in page.aliases)}.")
    common: list[tuple[str, str]] = []
    for verb in page.verbs:
        if len(page.verbs) > 1:
            parts += [f"## {verb.words}", _sentence(verb.summary)]
        if verb.aliases:
            parts.append(f"Other names: {', '.join(f'`{name}`' for name in verb.aliases)}.")
        words = " ".join(
            [verb.words, *(["[OPTION ...]"] if verb.groups else []), *(name for name, _ in verb.arguments)]
        )
        parts.append(f"```usage\n{words}\n```")
        described = [(name, text) for name, text in verb.arguments if text]
        if described:
            parts.append(_table("argument", described))
        for title, options in verb.groups:
            if title == COMMON:
                common = options
            else:
                parts.append(_table(title.removesuffix("s") if title == "options" else title, options))
        if verb.example:
            parts.append("\n".join(["```console", *(f"$ {line}" for line in verb.example.splitlines()), "```"]))
    if common:
        parts += [f"## {COMMON[0].upper()}{COMMON[1:]}", _table("option", common)]
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """Return docs/CONFIGURATION.md."""
    (mount,) = next(page.verbs for page in pages() if page.name == "xnatfs-mount")
    options = [row for title, rows in mount.groups if title == "options" for row in rows]
    profile = [(name, text) for name, text in PROFILE.items()]
    return (
        "\n\n".join(
            [
                "# Configuration",
                _wrap(f"Options override environment variables, and those override the profile. {NOTE}"),
                "## Options of a mount",
                "`-o` takes the same options without the dashes, as mount(8) does: `-o allow_other,ttl=300`.",
                _table("option", options),
                "## Keys of a profile",
                _wrap(
                    "They are in `~/.config/xnatctl/config.yaml`, below `profiles:` and the name of the profile. At "
                    "the top of the file, `default_profile` names the default profile, and `output_format` is the "
                    "default of `--output`."
                ),
                _table("key", profile),
                "## Environment",
                "`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` and `SSL_CERT_FILE` have their usual meaning.",
                _table("variable", list(ENVIRONMENT.items())),
            ]
        )
        + "\n"
    )


def _wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    cells = [(name.replace("|", "\\|"), text.replace("|", "\\|")) for name, text in rows]
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in cells)])


def written() -> dict[Path, str]:
    """Return every generated page by its path."""
    index = "\n".join(f"- [{page.name.replace('-', ' ', 1)}]({page.name}.md): {page.summary}" for page in pages())
    statuses = _table("exit status", [(str(number), text) for number, text in STATUS_TEXTS.items()])
    found = {DOCS / "cli" / "README.md": f"# Commands\n\n{NOTE}\n\n{index}\n\n## Exit status\n\n{statuses}\n"}
    found[DOCS / "CONFIGURATION.md"] = configuration()
    for page in pages():
        found[DOCS / "cli" / f"{page.name}.md"] = markdown(page)
        found[DOCS / "man" / f"{page.name}.1"] = manual.of_commands(page)
    files = manual.files((DOCS / "OPERATING.md").read_text())
    for program in manual.programs(pages(), [("FILES", files), ("ENVIRONMENT", list(ENVIRONMENT.items()))]):
        found[DOCS / "man" / f"{program.name}.{program.section}"] = manual.of_program(program)
    return found


def main() -> None:
    for path, text in written().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
