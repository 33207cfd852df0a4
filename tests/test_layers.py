"""The architecture: who may import whom, and which third party belongs to whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "xnatfs"

# From the top down. A module imports from lines below its own, and within its own package.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"demo", "fuse", "upload"},
    {"transfer", "prearchive"},
    {"tree"},
    {"site"},
    {"walk"},
    {"past"},
    {"bulk", "many", "kept"},
    {"access"},
    {"series", "address", "tarnames"},
    {"client", "metadata", "content"},
    {"downloads"},
    {"transport", "untar", "profiles", "catalogue"},
    {"auth", "worker"},
    {"credentials", "listings"},
    {"config", "models", "sessions", "table", "keys"},
    {"tls", "mountinfo", "background", "network", "breaker", "manifest", "program", "urls"},
    {"patience", "locks", "ages"},
    {"errors"},
    {"untrusted"},
]
OWNERS = {
    "pyfuse3": {"fuse"},
    "httpx": {"client", "downloads", "transport", "network", "worker", "auth", "site", "demo"},
    "httpcore": {"transport"},
    "h11": {"worker"},
    "cachetools": {"metadata"},
    "yaml": {"config"},
    "keyring": {"credentials", "listings"},
    "ruamel": {"profiles"},
    "rich": {"cli"},
    "argcomplete": {"cli"},
    "argparse": {"cli", "demo"},  # the demo server is a program of its own
    "pydicom": {"demo", "upload"},
    "numpy": {"demo"},
}


def part(path: Path) -> str:
    """The line of the layers that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def test_every_module_has_its_layer():
    assert {part(path) for path in FILES} - {"__init__"} == DEPTH.keys()


def test_imports_point_down_only():
    wrong = []
    for path in FILES:
        for name in imports(path):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if top != "xnatfs" or target in ("__version__", part(path)):
                continue
            if part(path) != "__init__" and DEPTH[target] <= DEPTH[part(path)]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_third_parties_have_owners():
    wrong = []
    for path in FILES:
        for name in imports(path):
            owners = OWNERS.get(name.split(".")[0])
            if owners is not None and part(path) not in owners:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []
