"""Parse the options that choose what a mount shows."""

import argparse
from collections.abc import Callable
from pathlib import Path

from xnatfs.common.errors import BadReply, ConfigError
from xnatfs.settings.config import absolute_path
from xnatfs.settings.views import ALL_VIEWS, BIDS_OPTIONS, DEFAULT_VIEWS, NO_QUALITY, ViewOptions

# Options whose value is a list. A comma would end the value in `-o`, so a colon separates names as well.
LIST_OPTIONS = frozenset({"view", "projects", "scan_types", "quality", "resources", "hide", "bids_options"})


def name_list(text: str) -> str:
    """Parse a list of names, as A,B or A:B or "A,B"; return the names joined by commas."""
    names = [name.strip() for name in text.strip().strip('"').replace(":", ",").split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names like A,B (in -o: A:B)")
    return ",".join(names)


def list_of(*known: str) -> Callable[[str], str]:
    """Return a parser of lists of these names."""

    def parse(text: str) -> str:
        names = name_list(text)
        if unknown := [name for name in names.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def add_views(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose what is shown."""
    add = parser.add_argument
    views = f"show these views: {', '.join(ALL_VIEWS)}, or all (default: {','.join(DEFAULT_VIEWS)})"
    add("--view", type=list_of(*ALL_VIEWS, "all"), metavar="NAMES", help=views)
    add("--projects", type=name_list, metavar="IDS", help="show these projects only; '*' and '?' match any characters")
    add("--scan-types", type=name_list, metavar="TYPES", help="show scans of these types only")
    quality = f"show scans of these qualities only, as usable,questionable; '{NO_QUALITY}': scans without one"
    add("--quality", type=name_list, metavar="NAMES", help=quality)
    add("--resources", type=name_list, metavar="LABELS", help="show resources with these labels only")
    add("--hide", type=name_list, metavar="LABELS", help="hide resources with these labels, as SNAPSHOTS,secondary")
    add("--bids-map", type=Path, metavar="FILE", help="use the BIDS names in FILE before those of the server")
    bids_quality = "scans in bids/: usable (all but those of quality 'unusable'), or any (default: usable)"
    bids_options = f"further options of bids/: {', '.join(BIDS_OPTIONS)}"
    add("--bids-options", type=list_of(*BIDS_OPTIONS), metavar="NAMES", help=bids_options)
    add("--bids-quality", choices=("usable", "any"), metavar="WHICH", help=bids_quality)


def view_options(arguments: argparse.Namespace) -> ViewOptions:
    """Return the ViewOptions of the command line."""
    chosen = _names(arguments.view)
    return ViewOptions(
        shown=tuple(name for name in ALL_VIEWS if name in chosen or "all" in chosen) or DEFAULT_VIEWS,
        projects=_names(arguments.projects),
        scan_types=_names(arguments.scan_types),
        qualities=_names(arguments.quality),
        resources=_names(arguments.resources),
        hidden=_names(arguments.hide),
        bids_map=map_path(arguments.bids_map),
        bids_options=_names(arguments.bids_options),
        bids_quality=arguments.bids_quality or "usable",
    )


def map_path(path: Path | None) -> str:
    """Return the absolute path of a map of BIDS names; '' for None. Raises ConfigError if the map is not valid."""
    if not path:
        return ""
    from xnatfs.rest.bids import parse_map  # only a mount with a map needs it

    absolute = absolute_path(path)
    try:
        parse_map(absolute.read_text("utf-8"), f"--bids-map {path}")
    except OSError as error:
        raise ConfigError(f"--bids-map {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--bids-map {path}: {error}") from None
    except BadReply as error:
        raise ConfigError(str(error)) from None
    return str(absolute)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
