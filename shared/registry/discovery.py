"""Discovery of Servables and network builders by scanning packages; there is no global table.

A room whose extra is not installed is skipped; `skipped_modules()` says which, and why, for `fovea doctor`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from shared.errors import NotFound
from shared.registry.card import Card
from shared.registry.servable import Servable
from shared.sparsity import SparsityClaim

SERVICES = ("vision-restoration", "medical-seg", "detection", "llm-longctx", "interpretability", "relevance-judge")
"""The six services by the name that images, URLs, queues and metric labels carry."""

ROOMS = ("models", "methods", "mixers", "judges", "experiments")
"""Rooms of a service that are scanned."""

_ONE_AT_A_TIME = threading.RLock()
"""Models load in threads. Where two threads wait for each other's imports, Python lets one see half a module."""

_MARK = "__fovea_network__"
_LAYOUTS = "__fovea_layouts__"

F = TypeVar("F", bound=Callable[..., Any])


def service_package(service: str) -> str:
    """Import name of a service: `medical-seg` → `services.medical_seg`. The one place that knows the rule."""
    return "services." + service.replace("-", "_")


def builder(name: str, layouts: Sequence[Mapping[str, Any]] = ()) -> Callable[[F], F]:
    """Mark a function (or class) as the builder that `network(name, ...)` calls.

    Args:
        name: Of the network.
        layouts: Keywords of all official layouts, for networks that were published in several; the defaults alone
            otherwise.
    """

    def mark(build: F) -> F:
        setattr(build, _MARK, name)
        setattr(build, _LAYOUTS, tuple(dict(layout) for layout in layouts) or ({},))
        return build

    return mark


def servables(service: str) -> dict[str, type[Servable[Any, Any]]]:
    """Servables of one service by model name, in name order."""
    found = {
        cls.card.name: cls
        for module in _modules(service)
        for cls in vars(module).values()
        if inspect.isclass(cls)
        and issubclass(cls, Servable)
        and "card" in vars(cls)
        and cls.__module__ == module.__name__
    }
    return dict(sorted(found.items()))


def shipped_weights() -> dict[str, Path]:
    """Weights that came with the package, of all services, by name: how one service finds a model of another."""
    found: dict[str, Path] = {}
    for service in SERVICES:
        spec = importlib.util.find_spec(service_package(service))
        for place in (spec.submodule_search_locations or []) if spec else []:
            found |= {file.stem: file for file in sorted((Path(place) / "weights").glob("*.safetensors"))}
    return found


def services_with_models() -> tuple[str, ...]:
    """Services whose code holds a Card: told from its source, because importing all rooms loads all their libraries."""
    found = {name: importlib.util.find_spec(service_package(name)) for name in SERVICES}
    return tuple(
        name
        for name, spec in found.items()
        for place in (spec.submodule_search_locations or () if spec else ())
        if any("Card(" in file.read_text("utf-8") for file in Path(place).rglob("*.py") if "tests" not in file.parts)
    )


def networks() -> dict[str, Callable[..., Any]]:
    """All marked builders by name, from every service room and `shared.lm`."""
    found: dict[str, Callable[..., Any]] = {}
    for module in (*_package_modules("shared.lm"), *(m for s in SERVICES for m in _modules(s))):
        for thing in vars(module).values():
            # The mark is the thing's own: a subclass of a marked class is not that network.
            name = getattr(thing, "__dict__", {}).get(_MARK) if callable(thing) else None
            if name is not None and getattr(thing, "__module__", None) == module.__name__:
                found[name] = thing
    return found


def network(name: str, *args: Any, **config: Any) -> Any:
    """Build a network (a `torch.nn.Module`) by name, for example `network("pranet", width=1.0)`.

    Raises:
        NotFound: No installed room has a builder of that name; the detail lists those there are.
    """
    return _builder(name)(*args, **config)


def _builder(name: str) -> Callable[..., Any]:
    known = networks()
    if name not in known:
        detail = f"There is no network {name!r}; known are {', '.join(sorted(known)) or 'none'}."
        raise NotFound(detail, hint=f"Rooms left out: {skipped_modules() or 'none'}.")
    return known[name]


def claims() -> dict[str, SparsityClaim]:
    """Every sparsity claim by what it is about: of Cards, and of classes and modules of the rooms that carry one."""
    found: dict[str, SparsityClaim] = {}
    for module in (m for service in SERVICES for m in _modules(service)):
        owners = (thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__)
        held = (value for owner in owners if inspect.isclass(owner) for value in vars(owner).values())
        for thing in (*vars(module).values(), *held):
            claim = thing.sparsity if isinstance(thing, Card) else thing
            if isinstance(claim, SparsityClaim):
                found[claim.model] = claim
    return dict(sorted(found.items()))


def layouts(name: str) -> tuple[dict[str, Any], ...]:
    """Keywords of the official layouts of a network; one set of none means that the defaults are the layout.

    Raises:
        NotFound: No installed room has a builder of that name.
    """
    found: tuple[dict[str, Any], ...] = getattr(_builder(name), _LAYOUTS, ({},))
    return found


def module_names(package: str) -> list[str]:
    """Dotted names of a package and of all modules below it, at any depth; empty where there is no such package.

    Imports packages on the way down, but no module. Test folders are left out.
    """
    parent = package.rpartition(".")[0]
    if importlib.util.find_spec(parent) is None or (spec := importlib.util.find_spec(package)) is None:
        return []
    below = pkgutil.iter_modules(spec.submodule_search_locations or [])
    names = [
        name
        for info in sorted(below, key=lambda info: info.name)
        if info.name != "tests"
        for name in (module_names(f"{package}.{info.name}") if info.ispkg else [f"{package}.{info.name}"])
    ]
    return [package, *names]


def skipped_modules() -> dict[str, str]:
    """Modules that could not be imported because a library is missing: module name → missing library."""
    missing: dict[str, str] = {}
    for package in ("shared.lm", *(f"{service_package(s)}.{room}" for s in SERVICES for room in ROOMS)):
        missing |= {name: found for name, found in _load_all(package).items() if isinstance(found, str)}
    return missing


def _modules(service: str) -> Iterator[ModuleType]:
    for room in ROOMS:
        yield from _package_modules(f"{service_package(service)}.{room}")


def _package_modules(package: str) -> Iterator[ModuleType]:
    yield from (found for found in _load_all(package).values() if isinstance(found, ModuleType))


def _load_all(package: str) -> dict[str, ModuleType | str]:
    """All modules of a package by name."""
    with _ONE_AT_A_TIME:
        return {name: _load(name) for name in module_names(package)}


def _load(name: str) -> ModuleType | str:
    """The module, or the name of the library that it lacks. Our own mistakes are raised, not skipped."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"fovea", "services", "shared"}:
            raise
        return error.name
