"""`fovea doctor`: checks what this machine has and lacks, and says what to do. Starts and changes nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from fovea import plugins
from fovea.errors import FoveaError
from shared.engines import missing_parts
from shared.jobs import redis_server
from shared.registry import discovery
from shared.registry.weights import PACKAGES, has_files, read_manifest, read_weights
from shared.serving.device_placement import choose_device, list_gpus
from shared.serving.up.launch import find_port_trouble
from shared.settings import Settings, settings
from shared.storage import open_object_store

Verdict = Literal["good", "note", "bad"]

_READ = ("adapters", "commands", "extensions", "findings", "models", "pages", "recipes", "routes", "sources", "traffic")
_MIN_MEMORY_BYTES = 4 * 2**30
_MARKS = {"good": "[green]✓[/]", "note": "[yellow]·[/]", "bad": "[red]✗[/]"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Result of one check: `bad` keeps the product from running, `note` is worth knowing."""

    topic: str
    verdict: Verdict
    detail: str


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """Check what this machine has and lacks; the exit code says whether the product can run."""
    found = examine(settings())
    if as_json:
        findings = [{"topic": one.topic, "verdict": one.verdict, "told": one.detail} for one in found]
        typer.echo(json.dumps({"ok": _can_run(found), "findings": findings}, indent=1))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for finding in found:
            console.print(f"{_MARKS[finding.verdict]} {finding.topic:<11} {escape(finding.detail)}")
    raise typer.Exit(0 if _can_run(found) else 1)


def examine(config: Settings) -> list[Diagnosis]:
    """Run all checks."""
    return [finding for check in _CHECKS for finding in _safely(check, config)]


def _safely(check: Check, config: Settings) -> list[Diagnosis]:
    """A check that fails is a finding too: a room that can't be imported must not hide the others."""
    topic = check.__name__.lstrip("_")
    try:
        return list(check(config))
    except FoveaError as error:
        return [Diagnosis(topic, "bad", f"{error.detail} {error.hint or ''}")]
    except Exception as error:  # noqa: BLE001  # reported as a finding
        return [Diagnosis(topic, "bad", f"{type(error).__name__}: {error}")]


def _can_run(found: list[Diagnosis]) -> bool:
    return all(finding.verdict != "bad" for finding in found)


def _python(_: Settings) -> list[Diagnosis]:
    return [Diagnosis("python", "good", f"{platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")]


def _memory(config: Settings) -> list[Diagnosis]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    config.data_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.data_dir).free
    detail = f"{total / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB free under {config.data_dir}"
    return [Diagnosis("memory", "good" if total >= _MIN_MEMORY_BYTES else "note", detail)]


def _ports(config: Settings) -> list[Diagnosis]:
    free = f"{config.http_port} (HTTP) and {config.grpc_port} (gRPC) on {config.host} are free"
    trouble = [Diagnosis("ports", "bad", told) for told in find_port_trouble(config)]
    return trouble or [Diagnosis("ports", "good", free)]


def _redis(config: Settings) -> list[Diagnosis]:
    return [Diagnosis("redis", "good", redis_server.describe_redis(config))]


def _ray(config: Settings) -> list[Diagnosis]:
    found = _version("ray")
    lack: Verdict = "bad" if config.placement == "ray" else "note"
    missing = "missing; FOVEA_PLACEMENT=ray and clusters need it. Try: pip install 'fovea-platform[cluster]'"
    return [Diagnosis("ray", "good" if found else lack, found or missing)]


def _compilers(_: Settings) -> list[Diagnosis]:
    found = ", ".join(filter(shutil.which, ("gcc", "g++", "clang", "nvcc")))
    return [Diagnosis("compilers", "good" if found else "note", found or "none; torch.compile alone needs one")]


def _gpus(config: Settings) -> list[Diagnosis]:
    found, device = ", ".join(list_gpus()), choose_device(config.device)
    told = f"{found or 'none (no NVIDIA driver)'}; models load on {device}"
    return [Diagnosis("gpus", "good" if found else "note", told)]


def _engines(config: Settings) -> Iterator[Diagnosis]:
    numbers = {"torch": _version("torch"), "onnx": _version("onnxruntime") or _version("onnxruntime-gpu")}
    missing = {name: reason for name, reason in missing_parts().items() if name != "triton"}
    if missing["tensorrt"] is None and not list_gpus():
        missing["tensorrt"] = "the provider is there, but no GPU"
    for name, reason in missing.items():
        there = f"{name} {numbers.get(name) or 'through onnxruntime'}"
        yield Diagnosis("engine", "note" if reason else "good", f"{name} not there: {reason}" if reason else there)
    server = config.triton_url or "no server (FOVEA_TRITON_URL is not set)"
    yield Diagnosis("engine", "good" if config.triton_url else "note", f"triton {server}")


def _findings(_: Settings) -> list[Diagnosis]:
    """Checks of packages: entry points of group `fovea.findings`, functions that return verdict and text."""
    return [Diagnosis(name, *find()) for name, find in plugins.load_all("fovea.findings", working=True).items()]


def _rooms(_: Settings) -> list[Diagnosis]:
    left = [f"{room} left out: needs {library}" for room, library in discovery.skipped_modules().items()]
    models = plugins.entries(discovery.MODELS)
    for one in (*models, *plugins.entries("fovea.routes")):
        if one.name.partition(".")[0] not in {*discovery.SERVICES, "gateway"}:
            left.append(f"{plugins.owner(one)} left out: its entry point {one.name!r} begins with no service")
        elif one in models and not discovery.module_names(one.module):
            left.append(f"{plugins.owner(one)} left out: there is no package {one.module!r}")
    odd = [name for name in entry_points().groups if name.startswith("fovea.") and name[6:] not in _READ]
    left += [f"entry points of {group!r} left out: the groups are fovea.{', '.join(_READ)}" for group in sorted(odd)]
    return [Diagnosis("rooms", "note", told) for told in left]


def _models(_: Settings) -> list[Diagnosis]:
    found = {service: ", ".join(discovery.servables(service)) for service in discovery.SERVICES}
    lines = [Diagnosis("models", "good", f"{service}: {names}") for service, names in found.items() if names]
    broken = [Diagnosis("plug-ins", "bad", f"{place} left out: {told}") for place, told in plugins.BROKEN.items()]
    return [*(lines or [Diagnosis("models", "bad", "no service has a model; see the rooms left out")]), *broken]


def _objects(config: Settings) -> list[Diagnosis]:
    objects = open_object_store(config)
    try:
        objects.put("doctor", b"")
        objects.delete("doctor")
    except FoveaError as error:
        return [Diagnosis("objects", "bad", f"{config.object_store_url}: {error.detail} {error.hint}")]
    return [Diagnosis("objects", "good", config.object_store_url)]


def _weights(config: Settings) -> Iterator[Diagnosis]:
    """Whether all weights of the services are installed, and those and imported ones are what their manifests say."""
    packaged = [folder for service in discovery.SERVICES for folder in discovery.data_folders(service, "weights")]
    for folder in (*packaged, config.weights_dir):
        yield from map(_verify, sorted(folder.glob("*.safetensors")))
    yield from _list_packages(packaged)


def _list_packages(folders: list[Path]) -> Iterator[Diagnosis]:
    """The packages that would bring weights which are missing."""
    missing: dict[str, list[str]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*.json"))):
        if not has_files(file.stem, file.parent):
            missing.setdefault(PACKAGES.get(read_manifest(file).licence, "(none)"), []).append(file.stem)
    for package, names in missing.items():
        yield Diagnosis("weights", "note", f"no weights of {', '.join(names)}. Try: pip install {package}")


def _verify(file: Path) -> Diagnosis:
    try:
        weights = read_weights(file)
    except (FoveaError, OSError, ValueError) as error:
        return Diagnosis("weights", "bad", f"{file.name}: {getattr(error, 'detail', error)}")
    return Diagnosis("weights", "good", f"{file.name}: verified, sha256 {weights.manifest.sha256[:12]}…")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


Check = Callable[[Settings], Iterable[Diagnosis]]

_CHECKS: tuple[Check, ...] = (
    *(_python, _memory, _ports, _redis, _objects, _ray, _compilers, _gpus),
    *(_engines, _findings, _rooms, _models, _weights),
)
