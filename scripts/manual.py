"""Render the manual pages, in man(7): those of commands, and of the programs xnatfs, xnatctl and mount.xnatfs."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xnatfs.cli.host import helper
from xnatfs.cli.options import IGNORED_OPTIONS, REFUSED_OPTIONS, SELINUX_OPTIONS
from xnatfs.cli.parsing import COMMON_OPTIONS_TITLE as COMMON
from xnatfs.cli.parsing import STATUS_TEXTS

if TYPE_CHECKING:
    from scripts.reference import Page, Verb

Terms = list[tuple[str, str]]
# Options of both programs.
PROGRAM_OPTIONS = {
    "-h, --help": "show the commands, or the options of a command",
    "--version": "show the version",
}
EXEC_STATUSES = {
    "126, 127": "xnatfs exec: the command cannot be run, does not exist",
    "128+N": "xnatfs exec: signal N has ended the command; any other status is the command's own",
}
# Its summary, its description, and the pages that its page names.
PROGRAMS = {
    "xnatfs": (
        "mount an XNAT server as a local folder",
        "Show the projects, sessions, scans and files of an XNAT server as directories and files, read-only. Each "
        "command has a page, as xnatfs-mount(1). xnatfs ctl runs xnatctl(1).",
        "xnatfs-mount(1), xnatfs-status(1), xnatctl(1), mount.xnatfs(8)",
    ),
    "xnatctl": (
        "work with an XNAT server: list, download, upload, archive",
        "List, download and upload the data of an XNAT server. No mount is needed; profiles, sessions and the cache "
        "are shared with xnatfs(1). Each group of commands has a page, as xnatctl-session(1).",
        "xnatctl-auth(1), xnatctl-session(1), xnatfs(1)",
    ),
}
# The flags with which mount(8) starts its helper.
HELPER_FLAGS = {
    "-o OPTION[,OPTION...]": "the options below",
    "-s": "ignore options that are not known",
    "-f": "check the options, and mount nothing",
    "-v": "print what was mounted",
    "-n, -N NAMESPACE, -t TYPE": "no effect",
}
HELPER_STATUSES = {
    "0": "success",
    str(helper.WRONG_USE): "wrong option, or wrong usage",
    str(helper.MOUNT_INTERRUPTED): "interrupted by Ctrl-C",
    str(helper.FAILED): "the mount failed",
}
# Options of `xnatfs mount` that `-o` does not take.
NOT_IN_FSTAB = {"foreground", "quiet", "o"}


@dataclass(frozen=True)
class Program:
    """Describe a program on its page."""

    name: str
    section: int
    summary: str
    synopsis: Terms  # words, arguments
    description: str
    tables: dict[str, Terms]  # by their headings
    see_also: str


def of_commands(page: "Page") -> str:
    """Return the page of a command of xnatfs, or of a group of commands of xnatctl."""
    lines = [f'.TH {page.name.upper()} 1 "" xnatfs', ".SH NAME", _roff(f"{page.name} - {page.summary}"), ".SH SYNOPSIS"]
    for verb in page.verbs:
        lines += [
            f".B {_roff(verb.words)}",
            _roff(" ".join(["[OPTION ...]", *(name for name, _ in verb.arguments)])),
            ".br",
        ]
    lines.append(".SH COMMANDS" if len(page.verbs) > 1 else ".SH DESCRIPTION")
    common: Terms = []
    for verb in page.verbs:
        sentence = f"{verb.summary[:1].upper()}{verb.summary[1:]}."
        lines += [*([f".SS {_roff(verb.words)}"] if len(page.verbs) > 1 else []), _roff(sentence)]
        lines += _terms([(name, text) for name, text in verb.arguments if text])
        for title, options in verb.groups:
            if title == COMMON:
                common = options
            else:
                lines += _terms(options)
        if verb.example:
            lines += [
                ".PP",
                "Example:",
                ".PP",
                ".nf",
                *(_roff(f"    {line}") for line in verb.example.splitlines()),
                ".fi",
            ]
    if common:
        lines += [".SH OPTIONS OF ALL COMMANDS", *_terms(common)]
    lines += [".SH EXIT STATUS", *_terms([(str(number), text) for number, text in STATUS_TEXTS.items()])]
    return "\n".join(lines) + "\n"


def programs(pages: "list[Page]", ends: list[tuple[str, Terms]]) -> list[Program]:
    """Return the programs; `ends` are the last tables of each page: its files and its environment."""
    statuses = [(str(number), text) for number, text in STATUS_TEXTS.items()]
    verbs = [verb for page in pages for verb in page.verbs]
    common = next(rows for verb in verbs for title, rows in verb.groups if title == COMMON)
    options: dict[str, Terms] = {"xnatfs": [], "xnatctl": common}
    exits = {"xnatfs": [*statuses[:-1], *EXEC_STATUSES.items(), statuses[-1]], "xnatctl": statuses}
    return [
        *(
            Program(
                name,
                1,
                summary,
                [(f"{name} COMMAND", "[OPTION ...]"), (f"{name} COMMAND", "--help")],
                description,
                {
                    "COMMANDS": [(verb.words, verb.summary) for verb in verbs if verb.words.startswith(f"{name} ")],
                    "OPTIONS": [*PROGRAM_OPTIONS.items(), *options[name]],
                    "EXIT STATUS": exits[name],
                    **dict(ends),
                },
                see_also,
            )
            for name, (summary, description, see_also) in PROGRAMS.items()
        ),
        _mount_helper(next(verb for verb in verbs if verb.words == "xnatfs mount"), ends),
    ]


def _mount_helper(mount: "Verb", ends: list[tuple[str, Terms]]) -> Program:
    return Program(
        "mount.xnatfs",
        8,
        "mount an XNAT server by mount(8), fstab, systemd or autofs",
        [("mount -t xnatfs", "URL DIR [-o OPTION[,OPTION...]]"), ("mount.xnatfs", helper.USAGE.split(" ", 2)[2])],
        "mount(8) runs this program, which it finds in /sbin, for lines of fstab(5) with the type xnatfs. The URL is "
        'that of the server, or "none" to take the server of the profile. Every mount is read-only.',
        {
            "OPTIONS": list(HELPER_FLAGS.items()),
            "MOUNT OPTIONS": _fstab_options(mount),
            "EXIT STATUS": list(HELPER_STATUSES.items()),
            **dict(ends),
        },
        "xnatfs-mount(1), xnatfs-umount(1), xnatfs-install-unit(1), mount(8), fstab(5)",
    )


def _fstab_options(mount: "Verb") -> Terms:
    """Return the options of `xnatfs mount` as `-o` takes them, and those that only mount(8) and other mounts have."""
    found = []
    for flags, text in (row for title, rows in mount.groups for row in rows):
        name, _, value = flags.split(", ")[-1].lstrip("-").partition(" ")
        if name not in NOT_IN_FSTAB:
            found.append((f"{name.replace('-', '_')}{value and '='}{value}", text))
    return [
        *found,
        ("exec, noexec", "allow or forbid running programs in the mount"),
        (", ".join(sorted(SELINUX_OPTIONS)), "labels of SELinux, from root"),
        (", ".join(sorted(IGNORED_OPTIONS)), "no effect; nor has an option that begins with x- or X-"),
        (", ".join(sorted(REFUSED_OPTIONS)), "refused, with the reason"),
    ]


def files(operating: str) -> Terms:
    """Return the rows of the table of files in OPERATING."""
    table = operating.partition("\n## Files\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (`~.*?`) \| (.*) \|$", table, re.MULTILINE)


def of_program(program: Program) -> str:
    """Return the page of a program."""
    title = f'.TH {program.name.upper()} {program.section} "" xnatfs'
    lines = [title, ".SH NAME", _roff(f"{program.name} - {program.summary}"), ".SH SYNOPSIS"]
    for words, arguments in program.synopsis:
        lines += [f".B {_roff(words)}", _roff(arguments), ".br"]
    lines += [".SH DESCRIPTION", _roff(program.description)]
    for heading, rows in program.tables.items():
        lines += [f".SH {heading}", *_terms([(name.replace("`", ""), text.replace("`", "")) for name, text in rows])]
    return "\n".join([*lines, ".SH SEE ALSO", _roff(program.see_also)]) + "\n"


def _terms(rows: Terms) -> list[str]:
    return [line for name, text in rows for line in (".TP", f".B {_roff(name)}", _roff(text))]


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
