"""Engine factory: opens the engine that a LoadContext names. Imports only that engine's library."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from fovea.api.tensors import TensorSpec
from fovea.errors import FoveaError, NotReady
from shared.registry.servable import Engine, LoadContext
from shared.telemetry import log

if TYPE_CHECKING:
    from torch import nn

    from shared.engines.gpu_providers import Precision

_LIBRARIES = {"onnx": "onnxruntime", "torch": "torch", "tensorrt": "onnxruntime", "triton": "tritonclient"}

_AUTO_ORDER = ("onnx", "torch")
"""Engines that `auto` tries, fastest first: on the CPU ONNX Runtime takes half of torch's time for PraNet."""

_AUTO_REASON = (
    f"auto takes the first of {', '.join(_AUTO_ORDER)} that opens; tensorrt (its first start builds for minutes) and "
    "triton (another process) only by name."
)


@dataclass(frozen=True, slots=True)
class ModelArtifacts:
    """Artifacts of one network: an ONNX graph, a torch network. Each is made when an engine asks for it, never before.

    Attributes:
        name: Its name on a remote server.
        inputs: Its tensors, as torch takes them; an ONNX graph and a server state their own.
        outputs: Its tensors, as torch returns them.
        graph: Path of its ONNX file, exported if need be.
        network: The torch network with its weights, and what of it to call (None: the network itself).
    """

    name: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    graph: Callable[[], Path] | None = None
    network: Callable[[], tuple[nn.Module, Callable[..., Any] | None]] | None = None


def open_engine(context: LoadContext, artifacts: ModelArtifacts) -> Engine:
    """Open the engine that `context` names; `auto` takes the first that opens, and logs which and why.

    Raises NotReady: it can't run here; the detail says why, for `auto` of each that was tried.
    """
    if context.engine != "auto":
        engine = _OPENERS[context.engine](context, artifacts)
        engine.reason = f"FOVEA_ENGINE={context.engine}."
        return engine
    reasons: list[str] = []
    for choice in _AUTO_ORDER:
        try:
            engine = _OPENERS[choice](context, artifacts)
        except FoveaError as error:
            log().warning("engine not opened", engine=choice, network=artifacts.name, reason=error.detail)
            reasons.append(f"{choice}: {error.detail}")
        else:
            engine.reason = " ".join([*reasons, _AUTO_REASON])
            log().info("engine taken", engine=choice, network=artifacts.name, reason=engine.reason)
            return engine
    raise NotReady(f"No engine opens {artifacts.name!r}. {' '.join(reasons)}")


def missing_parts() -> dict[str, str | None]:
    """Engine → what it lacks on this machine, None where it runs; for `fovea doctor`."""
    found: dict[str, str | None] = {}
    for name, library in _LIBRARIES.items():
        found[name] = None if importlib.util.find_spec(library) else f"the library {library} is not installed"
    if found["tensorrt"] is None:
        found["tensorrt"] = _module("tensorrt").missing()
    return found


def _module(name: str) -> ModuleType:
    """Import an engine's module, and with it its library."""
    try:
        return importlib.import_module(f"shared.engines.{name}")
    except ModuleNotFoundError as error:
        raise NotReady(
            f"The engine {name!r} needs the library {error.name}.", hint="Install the extra `cpu`, `gpu` or `serving`."
        ) from error


def _graph(artifacts: ModelArtifacts) -> Path:
    if artifacts.graph is None:
        raise NotReady(f"{artifacts.name!r} has no ONNX form.", hint="Choose the engine `torch` or `auto`.")
    return artifacts.graph()


def _precision(context: LoadContext) -> Precision:
    return "fp16" if context.options.get("vision_precision") == "fp16" else "fp32"


def _onnx(context: LoadContext, artifacts: ModelArtifacts) -> Engine:
    graph = _graph(artifacts)
    if context.device != "cpu" and _precision(context) == "fp16":
        graph = _module("half_precision").halve(graph, context.cache)
    return cast("Engine", _module("onnx").OnnxEngine(graph, device=context.device, threads=context.threads))


def _tensorrt(context: LoadContext, artifacts: ModelArtifacts) -> Engine:
    named = {"cache": context.cache, "threads": context.threads, "objects": context.objects}
    named |= {"inputs": artifacts.inputs, "precision": _precision(context)}
    device = context.device if context.device.startswith("cuda") else "cuda"
    return cast("Engine", _module("tensorrt").TensorRTEngine(_graph(artifacts), device=device, **named))


def _torch(context: LoadContext, artifacts: ModelArtifacts) -> Engine:
    if artifacts.network is None:
        raise NotReady(f"{artifacts.name!r} has no torch form.")
    network, call = artifacts.network()
    engine = _module("torch").TorchEngine
    named = {"device": context.device, "threads": context.threads, "call": call}
    return cast("Engine", engine(network, artifacts.inputs, artifacts.outputs, **named))


def _triton(context: LoadContext, artifacts: ModelArtifacts) -> Engine:
    url = context.options.get("triton_url")
    if not url:
        raise NotReady("No Triton server is named.", hint="Set FOVEA_TRITON_URL to its host:port.")
    timeout = float(context.options.get("triton_timeout_s", 60))
    connections = int(context.options.get("triton_connections", 8))
    declared = (*artifacts.inputs, *artifacts.outputs)
    engine = _module("triton").TritonEngine
    return cast("Engine", engine(url, artifacts.name, timeout=timeout, connections=connections, declared=declared))


_OPENERS: Mapping[str, Callable[[LoadContext, ModelArtifacts], Engine]] = {
    "onnx": _onnx, "torch": _torch, "tensorrt": _tensorrt, "triton": _triton,
}  # fmt: skip
