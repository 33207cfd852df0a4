"""Parse command lines: plural nouns list, a group alone shows its help, and errors name what was probably meant."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from xnatfs import __version__
from xnatfs.cli import streams
from xnatfs.common import errors

# Columns that help leaves free at the right, as argparse does.
RIGHT_MARGIN = 2
# Exit status for a command line that cannot be parsed, as that of a ConfigError.
USAGE_STATUS = 2
PARTIAL_STATUS = 8  # a part of the work was done


# Title of the options that every command has: the help of a program shows them, that of a command names them.
COMMON_OPTIONS_TITLE = "options of all commands"

# All exit statuses; 66 to 74 are those of sysexits.h.
STATUS_TEXTS = {
    0: "success",
    1: "conflict with existing data, or any other error",
    USAGE_STATUS: "wrong option, profile or YAML",
    3: "no login, or the server refused it",
    4: "network or TLS error, or the address is not an XNAT",
    5: "not found, or hidden from this account",
    6: "not allowed",
    PARTIAL_STATUS: "partly done",
    66: "the mountpoint cannot be used",
    69: "FUSE 3 is missing",
    70: "a fault of this program, which says so",
    73: "the cache directory cannot be used",
    74: "a file, a directory or the output cannot be read or written, as on a full or read-only disk",
    130: "interrupted by Ctrl-C",
}


class HelpFormatter(argparse.HelpFormatter):
    """Wrap at blanks only, and examples not at all, so that they can be copied."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=streams.terminal_columns() - RIGHT_MARGIN)

    def _split_lines(self, text: str, width: int) -> list[str]:
        from xnatfs.cli.output import fold

        return fold(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = [text] if text.startswith("example: ") else self._split_lines(text, width)
        return "\n".join(indent + each for each in lines)


class CommandGroup(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Commands of a program or a noun. A plural noun alone, or with options only, lists."""

    plurals: frozenset[str] = frozenset()

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name, *words = values
        if name in self.plurals and _is_bare(words, commands_of(self.choices[name])):
            values = [name, "list", *words]
        super().__call__(parser, namespace, values, option_string)


def _is_bare(words: Sequence[str], verbs: Iterable[str]) -> bool:
    """Return whether words after a plural noun are the options of its list."""
    if words and (words[0] in ("-h", "--help") or not words[0].startswith("-")):
        return False
    return not set(words).intersection(verbs)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands below a parser, by each of their names."""
    groups = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: below for group in groups for name, below in group.choices.items()}


class CommandParser(argparse.ArgumentParser):
    """Report an error of the command line in one line, with the name that was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})
        self.register("action", "parsers", CommandGroup)

    def format_help(self) -> str:
        """Return the help: usage, arguments and options of this command, the names of the common ones, an example."""
        is_program = " " not in self.prog
        formatter = self._get_formatter()
        if self.usage:
            formatter.add_usage(self.usage, self._actions, ())
        else:
            needed = [action for action in self._actions if not action.option_strings or action.required]
            formatter._prog = f"{self.prog} [OPTION ...]"
            formatter.add_usage(None, needed, ())
        formatter.add_text(self.description)
        common: list[str] = []
        for group in self._action_groups:
            if group.title == COMMON_OPTIONS_TITLE and not is_program:
                common = [action.option_strings[-1] for action in group._group_actions]
                continue
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        if common:
            formatter.add_text(f"{COMMON_OPTIONS_TITLE}: {', '.join(common)}; see '{self.prog.split()[0]} --help'")
        if is_program:
            formatter.start_section("exit status")
            formatter.add_arguments(
                argparse.Action([], "", metavar=str(number), help=text) for number, text in STATUS_TEXTS.items()
            )
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        text = f"{message} (see {self.prog} --help)"
        if self.prog.startswith("xnatctl"):
            raise errors.UsageError(text)
        self.exit(USAGE_STATUS, f"{self.prog}: {text}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        commands = commands_of(self)
        if commands and not words and "_ARGCOMPLETE" not in os.environ:
            self.print_help()
            self.exit()
        self._check_options(words, commands)
        arguments, unknown = super().parse_known_args(words, namespace)
        if unknown and not commands:  # reported here, by the command whose options they are not
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return arguments, unknown

    def _check_options(self, words: Sequence[str], commands: dict[str, argparse.ArgumentParser]) -> None:
        """Report an unknown option before what is missing: it may be the missing one, misspelt."""
        known, is_value = self._option_string_actions, False
        for word in words:
            if word == "--" or (commands and not word.startswith("-") and not is_value):
                return  # what follows a command is for its own parser
            name, equals, _ = word.partition("=")
            is_value = not equals and name in known and known[name].nargs != 0
            if not name.startswith("-") or " " in name or name in known:
                continue
            if any(_takes(below, name) for below in commands.values()):
                self.error(f"{name} is an option of a command: give it after the command")
            if name.startswith("--"):
                self.error(f"unrecognized option {name}{suggest(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            below = [parser for parser in action.choices.values() if value in commands_of(parser)]
            deeper = dict.fromkeys(f"{parser.prog.split()[-1]} {value}" for parser in below)
            *first, last = deeper or [""]
            known = f"{', '.join(first)} or {last}" if first else last
            hint = f": did you mean {known}?" if deeper else suggest(value, action.choices)
            self.error(f"there is no command {value!r}{hint}")
        super()._check_value(action, value)


def _takes(parser: argparse.ArgumentParser, name: str) -> bool:
    """Return whether a command, or one below it, has an option."""
    return name in parser._option_string_actions or any(_takes(each, name) for each in commands_of(parser).values())


def suggest(given: str, known: Iterable[str]) -> str:
    """Return a question for the known word that is most like the given one; '' if none is."""
    from difflib import get_close_matches  # for an error only

    found = get_close_matches(given, sorted(known), n=1)
    return f": did you mean {found[0]}?" if found else ""


def add_command(commands: Any, name: str, summary: str, example: str, **options: Any) -> argparse.ArgumentParser:
    """Add a command with its help and an example, which stands last."""
    description = f"{summary[:1].upper()}{summary[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, epilog=f"example: {example}", **options
    )
    return parser


def make_parser(name: str, description: str) -> CommandParser:
    parser = CommandParser(prog=name, description=description)
    parser.add_argument("--version", action="version", version=f"{name} {__version__}")
    return parser
