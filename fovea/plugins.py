"""Plug-ins: everything that another installed package adds, found through entry points and only through them.

The guide, `plugins/README.md`, lists the groups. Names in `fovea.models` and `fovea.routes` begin with a service, as
`detection.survey`.
`known_plugins.json` lists what the project's own plug-ins bring, so that an error can say which one is missing.
"""

import importlib.metadata
import json
import logging
import re
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

from fovea.errors import Fault, FoveaError, NotFound

Kind = Literal["commands", "fields", "models", "paths"]
"""Keys of the list of known plug-ins that an error looks up. Console pages are paths."""

BROKEN: dict[str, str] = {}
"""Modules and entry points of plug-ins that this process has left out → why."""

_KNOWN = Path(__file__).with_name("known_plugins.json")


@cache
def entries(group: str, prefix: str | None = None) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group by name and value; with a prefix those of this name, or below it by a dot."""
    found = importlib.metadata.entry_points(group=group)
    wanted = [p for p in found if prefix is None or p.name == prefix or p.name.startswith(f"{prefix}.")]
    return tuple(sorted(wanted, key=lambda point: (point.name, point.value)))


def load(point: EntryPoint, kind: type = object) -> Any:
    """Load what an entry point names. Raises Fault: the package is broken, or brings another kind; the detail says."""
    try:
        if isinstance(found := point.load(), kind):
            return found
        raise TypeError(f"not a {kind.__name__}, but a {type(found).__name__}")  # noqa: TRY301  # as if it had raised
    except FoveaError:
        raise
    except Exception as error:
        detail = f"The plug-in {owner(point)} can't be loaded: {point.value} raises {type(error).__name__}: {error}."
        raise Fault(detail, hint=f"Install it again, or remove it: pip uninstall {owner(point)}") from error


def load_all(group: str, prefix: str | None = None, kind: type = object, *, working: bool = False) -> dict[str, Any]:
    """Load a group: name → value. Raises Fault as `load`, or for a name of two; of `working` ones `BROKEN` has it."""
    found, points = dict[str, Any](), entries(group, prefix)
    for before, point in zip((None, *points), points, strict=False):  # in order of name
        try:
            if before is not None and before.name == point.name:
                detail = f"{owner(before)} and {owner(point)} both bring {point.name!r} of {group}."
                raise Fault(detail, hint=f"Remove one: pip uninstall {owner(point)}")
            found[point.name] = load(point, kind)
        except FoveaError as error:
            if not working:
                raise
            BROKEN[f"{group} {point.name}"] = f"{error.detail} {error.hint}"
            logging.getLogger(__name__).warning("%s %s left out: %s", group, point.name, error.detail)
    return found


def packages(service: str) -> list[str]:
    """Return the top packages of the plug-ins that bring models or routes of a service."""
    points = [*entries("fovea.models", service), *entries("fovea.routes", service)]
    return list(dict.fromkeys(point.module.partition(".")[0] for point in points))


def owner(point: EntryPoint) -> str:
    """Return the name of the distribution that an entry point belongs to."""
    return point.dist.name if point.dist is not None else "unknown"


def find_known(kind: Kind, name: str) -> str | None:
    """Return the known plug-in that brings a command, model or path, installed or not; None if there is none."""
    return next((plugin for plugin, brings in _read_known().items() if _has(kind, brings.get(kind, ()), name)), None)


def list_known(kind: Kind) -> list[str]:
    """Return all that the known plug-ins bring of a kind, whether they are installed or not."""
    return sorted({name for brings in _read_known().values() for name in brings.get(kind, ())})


def explain_missing(kind: Kind, name: str, what: str, field: str | None = None) -> NotFound | None:
    """Return the error that says which plug-in to install, or None if no known plug-in brings it.

    `what` begins the sentence, for example "The model 'x'".
    """
    if (plugin := find_known(kind, name)) is None:
        return None
    detail = f"{what} comes with the plug-in {plugin}, which is not installed."
    return NotFound(detail, hint=f"Try: pip install fovea-{plugin}", field=field)


@cache
def _read_known() -> dict[str, dict[str, list[str]]]:
    known: dict[str, dict[str, list[str]]] = json.loads(_KNOWN.read_text("utf8"))
    return known


def _has(kind: Kind, names: list[str] | tuple[str, ...], name: str) -> bool:
    if kind != "paths":
        return name in names
    return any(re.fullmatch(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path)), name) for path in names)
