"""Test the architecture: package imports, no cycles, and the package that each third-party library belongs to."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "xnatfs"

# From the top down: a module imports from the lines below its package's, and within its own package.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"fuse", "transfer", "api", "demo"},
    {"tree"},
    {"site"},
    {"prefetch"},
    {"listings"},
    {"rest"},
    {"http"},
    {"download_worker", "content", "settings"},
    {"common"},
]
OWNERS = {
    "pyfuse3": {"fuse"},
    "httpx": {"rest", "http", "download_worker", "site", "demo"},
    "httpcore": {"http"},
    "h11": {"download_worker"},
    "yaml": {"settings", "cli"},
    "keyring": {"settings", "listings"},
    "ruamel": {"settings"},
    "rich": {"cli"},
    "upath": {"api"},
    "argcomplete": {"cli"},
    "argparse": {"cli", "demo"},  # the demo server is a program of its own
    "fsspec": {"api"},
    "pandas": {"api"},
    "pydicom": {"demo", "transfer"},
}
MOST_NAMES, MOST_MODULES = 17, 12

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def package(module: str) -> str:
    """Return the line of the layers that a module belongs to; that of `xnatfs` itself is empty."""
    return module.removeprefix("xnatfs").lstrip(".").partition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports, for type checkers only as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows() -> dict[str, set[str]]:
    """Return the modules of ours that each module imports."""
    found = {}
    for module, path in FILES.items():
        ours = [name for name in imports(path) if name.split(".")[0] == "xnatfs"]
        found[module] = {name if name in FILES else name.rpartition(".")[0] for name in ours} - {module}
    return found


ARROWS = arrows()


def test_every_package_has_its_layer():
    assert {package(module) for module in FILES} - {""} == DEPTH.keys()


def test_imports_point_down_only():
    wrong = [
        f"{module} imports {target}"
        for module, targets in ARROWS.items()
        for target in targets
        if package(module) and package(target) and package(module) != package(target)
        if DEPTH[package(target)] <= DEPTH[package(module)]
    ]
    assert wrong == []


def test_imports_form_no_circle():
    left = {module: set(targets) for module, targets in ARROWS.items()}
    while free := {module for module, targets in left.items() if not targets}:
        left = {module: targets - free for module, targets in left.items() if module not in free}
    assert left == {}


def test_packages_are_small_enough_to_look_through():
    assert (
        len([path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()])
        <= MOST_NAMES
    )
    folders = [path.parent for path in FILES.values() if path.name == "__init__.py" and path.parent != PACKAGE]
    modules = {str(folder.relative_to(PACKAGE)): len(list(folder.glob("[a-z]*.py"))) for folder in folders}
    assert {name: count for name, count in modules.items() if count > MOST_MODULES} == {}


def test_third_parties_have_owners():
    wrong = [
        f"{module} imports {name}"
        for module, path in FILES.items()
        for name in imports(path)
        if package(module) not in OWNERS.get(name.split(".")[0], {package(module)})
    ]
    assert wrong == []
