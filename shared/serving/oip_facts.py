"""What Open Inference v2 tells about a service, in its JSON form; REST sends it as it is, gRPC as the same messages.

Knows the host and the metrics; knows no transport.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as installed_version
from typing import Any, Final

from shared import telemetry
from shared.api.tensors import TensorSpec
from shared.errors import InvalidOption, NotReady
from shared.registry import Servable
from shared.serving.host import Host
from shared.serving.tensors import batches

__all__ = ["EXTENSIONS", "config", "index", "load", "metadata", "model", "statistics", "unload"]

EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")
"""Triton's extensions that are offered: the others are refused in words."""

_STATES: Final[Mapping[str, str]] = {"ready": "READY", "loading": "LOADING"}


def metadata(host: Host) -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": f"fovea {host.service}", "version": installed_version("fovea"), "extensions": list(EXTENSIONS)}


def model(host: Host, name: str, version: str = "") -> dict[str, Any]:
    """Inputs, outputs and versions of a model.

    Raises:
        NotFound: No such model or version.
        NotReady: Not loaded, so its tensors are not known yet.
    """
    inputs, outputs = host.tensors(name, version)
    servable = host.servable(name)
    return {
        "name": name,
        "versions": [servable.card.version],
        "platform": _platform(servable),
        "inputs": [spec.model_dump(mode="json") for spec in inputs],
        "outputs": [spec.model_dump(mode="json") for spec in outputs],
    }


def config(host: Host, name: str, version: str = "") -> dict[str, Any]:
    """The part of Triton's model configuration that clients read.

    `max_batch_size` is the Card's limit, and `dims` then leave out the batch axis; without a limit it is 0 and `dims`
    are whole shapes.
    """
    inputs, outputs = host.tensors(name, version)
    servable = host.servable(name)
    batched = servable.engine is not None and batches(servable.engine)
    limit = (servable.card.limits.max_batch or 0) if batched else 0
    return {
        "name": name,
        "platform": _platform(servable),
        "backend": "fovea",
        "max_batch_size": limit,
        "input": [_dims(spec, whole=not limit) for spec in inputs],
        "output": [_dims(spec, whole=not limit) for spec in outputs],
    }


def index(host: Host, *, ready: bool = False) -> list[dict[str, Any]]:
    """All models with their state and, where not ready, the reason; only the ready ones if `ready`."""
    return [
        {
            "name": entry.id,
            "version": facts["version"],
            "state": _STATES.get(facts["state"], "UNAVAILABLE"),
            "reason": facts["reason"] or ("" if entry.ready else facts["state"]),
        }
        for entry in host.entries()
        if (entry.ready or not ready) and (facts := entry.model_extra or {})
    ]


def statistics(host: Host, name: str = "", version: str = "") -> dict[str, Any]:
    """Counts and durations of one model, or of all, since the process began, from the service's own metrics."""
    if name:
        host.tensors(name, version)
    return {
        "model_stats": [_statistics(host, entry.id, entry) for entry in host.entries() if name in ("", entry.id)],
    }


async def load(host: Host, name: str, parameters: Mapping[str, Any]) -> None:
    """Load a model that is not loaded.

    Raises:
        InvalidOption: It comes with a configuration or files, which are not taken from callers.
        NotReady: It failed to load; the detail says why.
    """
    if parameters:
        detail = f"A model is loaded as it is; {', '.join(map(repr, sorted(parameters)))} can't be given."
        raise InvalidOption(detail, field="parameters")
    await host.load(name)
    if reason := host.missing().get(name):
        detail = f"The model {name!r} did not load: {reason}"
        raise NotReady(detail, field="model")


async def unload(host: Host, name: str) -> None:
    """Take a model out of service, after its waiting calls."""
    await host.unload(name)


def _platform(servable: Servable[Any, Any]) -> str:
    return f"fovea_{servable.engine.name if servable.engine else servable.card.task}"


def _dims(spec: TensorSpec, *, whole: bool) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape if whole else spec.shape[1:])}


def _statistics(host: Host, name: str, entry: Any) -> dict[str, Any]:
    labels = {"service": host.service, "model": name}
    sizes = _sums(telemetry.BATCH_SIZE, labels)
    stages = {stage: _sums(telemetry.LATENCY, {**labels, "stage": stage}) for stage in ("queue", "pre", "run", "post")}
    good, bad = _answers(labels)
    durations = {stage: {"count": int(count), "ns": int(total * 1e9)} for stage, (count, total) in stages.items()}
    return {
        "name": name,
        "version": entry.version,
        "inference_count": int(sizes[1]),
        "execution_count": int(sizes[0]),
        "inference_stats": {
            "success": {"count": good, "ns": sum(stage["ns"] for stage in durations.values())},
            "fail": {"count": bad, "ns": 0},
            "queue": durations["queue"],
            "compute_input": durations["pre"],
            "compute_infer": durations["run"],
            "compute_output": durations["post"],
        },
    }


def _sums(histogram: Any, labels: Mapping[str, str]) -> tuple[float, float]:
    """Count and sum of what a histogram holds under `labels`."""
    found = {
        sample.name.rpartition("_")[2]: sample.value
        for family in histogram.collect()
        for sample in family.samples
        if labels.items() <= sample.labels.items() and "le" not in sample.labels
    }
    return found.get("count", 0.0), found.get("sum", 0.0)


def _answers(labels: Mapping[str, str]) -> tuple[int, int]:
    """Requests answered and refused."""
    counts = [0, 0]
    for family in telemetry.REQUESTS.collect():
        for sample in family.samples:
            if labels.items() <= sample.labels.items() and sample.name.endswith("_total"):
                counts[sample.labels["status"] not in {"200", "OK"}] += int(sample.value)
    return counts[0], counts[1]
