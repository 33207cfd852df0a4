"""An XNAT server as a local folder, and as files in Python.

`import xnatfs` loads nothing: the names below are loaded at their first use, with the libraries that they need. Their
types are in `__init__.pyi`.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "open": "api.server",
    "Server": "api.server",
    "DirEntry": "api.paths",
    "OpenOptions": "api.endpoint",
    "Project": "rest.models",
    "Subject": "rest.models",
    "Experiment": "rest.models",
    "Scan": "rest.models",
    "XnatError": "common.errors",
    "LoginRequired": "common.errors",
    "ConfigError": "common.errors",
    "Unreachable": "common.errors",
}

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
