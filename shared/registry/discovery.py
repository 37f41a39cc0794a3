"""Discovery of Servables and network builders by scanning packages, those of plug-ins too; there is no global table.

A module whose library is not installed is skipped; `skipped_modules()` lists these for `fovea doctor`. A plug-in's
module that raises is left out, and `plugins.BROKEN` says why; of two with one name, the core's or the first is served.
Servables are found in modules whose source assigns a `card`: a service does not import the networks of its graphs.
"""

import contextlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from fovea import plugins
from fovea.errors import Fault, NotFound
from shared.registry.card import Card
from shared.registry.servable import Servable
from shared.sparsity import SparsityClaim

SERVICES = ("vision-restoration", "medical-seg", "detection", "llm-longctx", "interpretability", "relevance-judge")
"""The six services by the name that images, URLs, queues and metric labels carry."""

ROOMS = ("models", "methods", "mixers", "judges", "experiments")
"""Packages of a service that are scanned."""

MODELS = "fovea.models"
"""Entry-point group of plug-ins' packages, which are scanned with the service's own."""

# Models load in threads. Where two threads wait for each other's imports, Python lets one see half a module.
_ONE_AT_A_TIME = threading.RLock()
_OWN = ("fovea", "services", "shared")
_CARD = re.compile(r"^[ \t]+card\b[^=\n]*=", re.MULTILINE)  # how the source of a Servable gives it a Card
_MARKED = "@builder("  # how the source of a network marks its builder
_MARK = "__fovea_network__"
LAYOUTS = "__fovea_layouts__"

F = TypeVar("F", bound=Callable[..., Any])


def service_package(service: str) -> str:
    """Import name of a service: `medical-seg` → `services.medical_seg`. The one place that knows the rule."""
    return "services." + service.replace("-", "_")


def rooms(service: str) -> tuple[str, ...]:
    """Return the import names of the packages that are scanned for a service: its own, then those of plug-ins."""
    return (*(f"{service_package(service)}.{room}" for room in ROOMS), *plugin_rooms(service))


def plugin_rooms(service: str) -> tuple[str, ...]:
    """Return the import names of the packages that plug-ins add to a service."""
    return tuple(point.module for point in plugins.entries(MODELS, service))


def builder(name: str, layouts: Sequence[Mapping[str, Any]] = ()) -> Callable[[F], F]:
    """Mark a function (or class) as the builder that `network(name, ...)` calls.

    `layouts` are the keywords of all official layouts of a network that was published in several, if not the defaults.
    """

    def mark(build: F) -> F:
        setattr(build, _MARK, name)
        setattr(build, LAYOUTS, tuple(dict(layout) for layout in layouts) or ({},))
        return build

    return mark


def servables(service: str) -> dict[str, type[Servable[Any, Any]]]:
    """Servables of one service by model name, in name order."""
    names = (name for room in rooms(service) for name in module_names(room) if _may_hold_servable(name))
    with _ONE_AT_A_TIME:
        loaded = [module for name in names if isinstance(module := _load(name), ModuleType)]
    return dict(sorted(pick_servables(loaded).items()))


def pick_servables(modules: Iterable[ModuleType]) -> dict[str, type[Servable[Any, Any]]]:
    """Servables that these modules define, by model name. Raises Fault: two of the core define the same name."""
    found: dict[str, type[Servable[Any, Any]]] = {}
    for module in modules:
        for cls in vars(module).values():
            if not inspect.isclass(cls) or not issubclass(cls, Servable) or cls.__module__ != module.__name__:
                continue
            if "card" in vars(cls) and (first := found.setdefault(cls.card.name, cls)) is not cls:
                with guard(cls.__module__):
                    detail = f"{first.__module__} and {cls.__module__} both bring the model {cls.card.name!r}."
                    raise Fault(detail, hint="Rename one in its Card, or uninstall its package.")
    return found


def shipped_weights() -> dict[str, Path]:
    """Weights that came with a package, by name: how one service finds a model of another."""
    folders = (folder for service in SERVICES for folder in data_folders(service, "weights"))
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.safetensors"))}


def data_folders(service: str, name: str) -> list[Path]:
    """Return the folders of a name (`weights`, `templates`) of a service: its own, then those of plug-ins.

    A plug-in's folder is in the package that is scanned, or next to it.
    """
    packages = {service_package(service): None}
    for room in plugin_rooms(service):
        packages |= {package: None for package in (room, room.rpartition(".")[0]) if package}
    found = (Path(place) / name for package in packages for place in _find_places(package))
    return [folder for folder in found if folder.is_dir()]


def services_with_models() -> tuple[str, ...]:
    """Services whose code holds a Card, which the source shows: importing all rooms would load all their libraries."""
    return tuple(n for n in SERVICES if any(_has_servable(p) for p in (service_package(n), *plugin_rooms(n))))


def networks() -> dict[str, Callable[..., Any]]:
    """All marked builders by name, from every service room and `shared.lm`."""
    return _pick_builders((*scan("shared.lm"), *(m for s in SERVICES for m in _modules(s))))


def _pick_builders(modules: Iterable[ModuleType]) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for module in modules:
        for thing in vars(module).values():
            # The mark is the thing's own: a subclass of a marked class is not that network.
            name = getattr(thing, "__dict__", {}).get(_MARK) if callable(thing) else None
            if name is not None and getattr(thing, "__module__", None) == module.__name__:
                found[name] = thing
    return found


def network(name: str, *args: Any, **config: Any) -> Any:
    """Build a network (a `torch.nn.Module`) by name, for example `network("pranet", width=1.0)`; else `NotFound`."""
    return _builder(name)(*args, **config)


def _builder(name: str) -> Callable[..., Any]:
    known = _pick_builders(_mentioning(f'"{name}"'))
    if name not in known and name not in (known := networks()):
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


def module_names(package: str) -> list[str]:
    """Dotted names of a package and of all modules below it, at any depth; empty where there is no such package.

    Imports packages on the way down, but no module. Test folders are left out.
    """
    spec = _find_spec(package)
    if spec is None:
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
    packages = ("shared.lm", *(room for service in SERVICES for room in rooms(service)))
    loaded = (item for package in packages for item in _load_all(package).items())
    return {name: found for name, found in loaded if isinstance(found, str)}


def _modules(service: str) -> Iterator[ModuleType]:
    for room in rooms(service):
        yield from scan(room)


def scan(package: str) -> Iterator[ModuleType]:
    """Import all modules of a package, at any depth, except those whose library is not installed."""
    yield from (found for found in _load_all(package).values() if isinstance(found, ModuleType))


def _find_spec(package: str) -> ModuleSpec | None:
    """Find a package without importing it; its parents are imported."""
    parent, spec = package.rpartition(".")[0], None
    with guard(package):
        spec = None if parent and importlib.util.find_spec(parent) is None else importlib.util.find_spec(package)
    return spec  # noqa: RET504  # what `guard` takes leaves it None


def _find_places(package: str) -> list[str]:
    return list(getattr(_find_spec(package), "submodule_search_locations", None) or ())


def _mentioning(text: str) -> list[ModuleType]:
    """Modules of one room with builders whose source holds a text: all rooms would load all their libraries."""
    for package in ("shared.lm", *(room for service in SERVICES for room in rooms(service))):
        with _ONE_AT_A_TIME, contextlib.suppress(ModuleNotFoundError):  # a library of another service is not there
            sources = {name: _read_source(name) for name in module_names(package)}
            told = [name for name, source in sources.items() if text in source and _MARKED in source]
            if found := [module for name in told if isinstance(module := _load(name), ModuleType)]:
                return found
    return []


def _read_source(module: str) -> str:
    """A module's source; empty where there is none."""
    spec = _find_spec(module)
    file = Path(spec.origin or "") if spec else Path()
    return file.read_text("utf-8") if file.suffix == ".py" else ""


def _has_servable(package: str) -> bool:
    files = (file for place in _find_places(package) for file in Path(place).rglob("*.py"))
    return any(_CARD.search(file.read_text("utf-8")) for file in files if "tests" not in file.parts)


def _may_hold_servable(module: str) -> bool:
    """Whether a module's source assigns a Card, or cannot be read."""
    source = _read_source(module)
    return not source or _CARD.search(source) is not None


def _load_all(package: str) -> dict[str, ModuleType | str | None]:
    with _ONE_AT_A_TIME:
        return {name: _load(name) for name in module_names(package)}


def _load(name: str) -> ModuleType | str | None:
    """The module, or the name of the library that it lacks; None: it raises. Our own mistakes are raised."""
    found: ModuleType | str | None = None
    with guard(name):
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] in {*_OWN, name.partition(".")[0]}:
                raise
            found = error.name
    return found


@contextlib.contextmanager
def guard(module: str) -> Iterator[None]:
    """Put what is raised about a plug-in's module into `plugins.BROKEN`; raise what is raised about our own."""
    try:
        yield
    except Exception as error:
        if module.partition(".")[0] in _OWN:
            raise
        plugins.BROKEN[module] = " ".join(f"{type(error).__name__}: {error}".split())
