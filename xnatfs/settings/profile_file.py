"""Edit `~/.config/xnatctl/config.yaml`, which other programs share: its comments, order and other keys are preserved.

Only keys that the xnatctl of PyPI knows are written there, because it drops all others; nothing that came from the
environment is.
"""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from xnatfs.common.errors import ConfigError
from xnatfs.common.files import write_private
from xnatfs.common.locks import holder, lock_within, open_lock
from xnatfs.settings.config import profiles_path, read_profiles, read_text

NEWEST_PROFILE_VERSION = 1  # the newest known `version` of the file
# Seconds that another process may take to change the file: it takes milliseconds, on a slow file server more.
EDIT_LOCK_SECONDS = 10.0


def add_profile(name: str, cells: dict[str, Any], *, replace: bool = False, path: Path | None = None) -> None:
    """Add a profile, or with `replace` change the given keys of an existing one. Raises ConfigError."""
    with _edited(path) as document:
        profiles = _mapping(document, "profiles")
        others = [each for each in profiles if each != name]
        if profiles.get(name) is not None and not replace:
            raise ConfigError(f"profile {name!r} exists already: --force changes it")
        _mapping(profiles, name).update(cells)
        if len(others) < 2:  # the only one was the default without being named
            document.setdefault("default_profile", next(iter(others), name))


def _mapping(holder: Any, key: str) -> Any:
    """Return the mapping under a key; a key without a value gets an empty one."""
    if holder.get(key) is None:
        holder[key] = {}
    return holder[key]


def use_profile(name: str, path: Path | None = None) -> None:
    """Make a profile the default. Raises ConfigError if it does not exist."""
    with _edited(path) as document:
        _existing(document, name, path)
        document["default_profile"] = name


def set_value(profile: str, key: str, value: Any, path: Path | None = None) -> None:
    """Set a key of a profile, or of the file if `profile` is empty; None removes it. Raises ConfigError."""
    with _edited(path) as document:
        cells = _existing(document, profile, path) if profile else document
        if value is None:
            cells.pop(key, None)
        else:
            cells[key] = value


def delete_profile(name: str, path: Path | None = None) -> None:
    """Remove a profile. Raises ConfigError if it does not exist."""
    with _edited(path) as document:
        _existing(document, name, path)
        del document["profiles"][name]
        if document.get("default_profile") == name:
            del document["default_profile"]


def replace_text(text: str, before: str, path: Path | None = None) -> None:
    """Replace the whole file, if it is still as `before`. Raises ConfigError."""
    path = (path or profiles_path()).resolve()
    with _locked(path):
        if read_text(path) != before:
            raise ConfigError(f"{path} was changed by another program meanwhile")
        _write(path, text)


def _write(path: Path, text: str) -> None:
    try:
        write_private(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _existing(document: Any, name: str, path: Path | None) -> Any:
    """Return the cells of a profile. Raises ConfigError if it does not exist."""
    profiles = document.get("profiles") or {}
    if name not in profiles:
        known = ", ".join(sorted(map(str, profiles))) or "none"
        raise ConfigError(f"profile {name!r} is not in {path or profiles_path()} (profiles there: {known})")
    return _mapping(profiles, name)


@contextmanager
def _edited(path: Path | None) -> Iterator[Any]:
    """Yield the document for editing, and write it when the block succeeds. Raises ConfigError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import YAMLError

    path = (path or profiles_path()).resolve()  # the target of a link is replaced, not the link
    read_profiles(path)  # reports its errors in the words of xnatfs
    yaml = YAML()
    yaml.preserve_quotes = True
    with _locked(path):
        try:
            document = (yaml.load(path.read_text(encoding="utf-8")) if path.exists() else None) or CommentedMap()
        except (YAMLError, ValueError, RecursionError) as error:
            # This parser is stricter than PyYAML, for example about duplicate keys. Its message may hold a password.
            mark = getattr(error, "problem_mark", None)
            where = f" line {mark.line + 1}" if mark else ""
            raise ConfigError(f"{path}{where} is not YAML that could be changed: is a key there twice?") from None
        version = document.get("version", NEWEST_PROFILE_VERSION)
        if not isinstance(version, int) or version > NEWEST_PROFILE_VERSION:
            raise ConfigError(f"{path} is of version {version}, which a newer program has written: it is left as it is")
        yield document
        text = io.StringIO()
        yaml.dump(document, text)
        _write(path, text.getvalue())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    place = path.with_name(".config.lock")
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(open_lock(place))
        except OSError as error:
            raise ConfigError(f"cannot write beside {path}: {error.strerror}") from None
        if not lock_within(descriptor, EDIT_LOCK_SECONDS):  # without it the changes of one program would be lost
            raise ConfigError(f"{path} is being changed by {holder(place)}: let that end, then try again")
        yield
