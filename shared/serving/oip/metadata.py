"""Metadata of Open Inference v2 in its JSON form: server, models, configuration, repository, statistics.

REST sends it as it is, gRPC as the same messages.
"""

from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from typing import Any, Final

from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption, NotReady
from shared import telemetry
from shared.registry import Servable
from shared.serving.host import Host
from shared.serving.oip.tensors import is_batchable

EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")
"""Triton's extensions that are offered; requests for others get an error."""

_Totals = defaultdict[tuple[str, str], list[float]]

_STATES: Final[Mapping[str, str]] = {"ready": "READY", "on_demand": "READY", "loading": "LOADING"}


def describe_server(host: Host) -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {
        "name": f"fovea {host.service}",
        "version": installed_version("fovea-platform"),
        "extensions": list(EXTENSIONS),
    }


async def describe_model(host: Host, name: str, version: str = "") -> dict[str, Any]:
    """Inputs, outputs and versions of a model.

    Raises NotFound: no such model or version; NotReady: not loaded, so its tensors are not known yet.
    """
    await host.wake(name)
    inputs, outputs = host.tensors(name, version)
    servable = host.servable(name)
    return {
        "name": name,
        "versions": [servable.card.version],
        "platform": _platform(servable),
        "inputs": [spec.model_dump(mode="json") for spec in inputs],
        "outputs": [spec.model_dump(mode="json") for spec in outputs],
    }


async def describe_config(host: Host, name: str, version: str = "") -> dict[str, Any]:
    """The part of Triton's model configuration that clients read.

    `max_batch_size` is the Card's limit, and `dims` then leave out the batch axis; without a limit it is 0.
    """
    await host.wake(name)
    inputs, outputs = host.tensors(name, version)
    servable = host.servable(name)
    batched = servable.engine is not None and is_batchable(servable.engine)
    limit = (servable.card.limits.max_batch or 0) if batched else 0
    return {
        "name": name,
        "platform": _platform(servable),
        "backend": "fovea",
        "max_batch_size": limit,
        "input": [_dims(spec, whole=not limit) for spec in inputs],
        "output": [_dims(spec, whole=not limit) for spec in outputs],
    }


def list_models(host: Host, *, ready: bool = False) -> list[dict[str, Any]]:
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


def collect_statistics(host: Host, name: str = "", version: str = "") -> dict[str, Any]:
    """Counts and durations of one model, or of all, since the process began, from the service's own metrics."""
    if name:
        host.check_ready(name, version)
    totals = _sum_metrics(host.service)
    entries = [entry for entry in host.entries() if name in ("", entry.id)]
    return {"model_stats": [_statistics(entry.id, (entry.model_extra or {})["version"], totals) for entry in entries]}


async def load_model(host: Host, name: str, parameters: Mapping[str, Any]) -> None:
    """Load a model that is not loaded.

    Raises InvalidOption: it comes with a configuration or files, which are not taken from callers; NotReady: it failed.
    """
    if parameters:
        detail = f"A model is loaded as it is; {', '.join(map(repr, sorted(parameters)))} can't be given."
        raise InvalidOption(detail, field="parameters")
    await host.load(name)
    if reason := host.missing().get(name):
        raise NotReady(f"The model {name!r} did not load: {reason}", field="model")


def _platform(servable: Servable[Any, Any]) -> str:
    return f"fovea_{servable.engine.name if servable.engine else servable.card.task}"


def _dims(spec: TensorSpec, *, whole: bool) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape if whole else spec.shape[1:])}


def _statistics(name: str, version: str, totals: _Totals) -> dict[str, Any]:
    good, bad = totals[name, "answers"]
    batches_run, requests_run = totals[name, "batch"]
    durations = {
        stage: {"count": int(count), "ns": int(seconds * 1e9)}
        for stage in ("queue", "pre", "run", "post")
        for count, seconds in (totals[name, stage],)
    }
    return {
        "name": name,
        "version": version,
        "inference_count": int(requests_run),
        "execution_count": int(batches_run),
        "inference_stats": {
            "success": {"count": int(good), "ns": sum(duration["ns"] for duration in durations.values())},
            "fail": {"count": int(bad), "ns": 0},
            "queue": durations["queue"],
            "compute_input": durations["pre"],
            "compute_infer": durations["run"],
            "compute_output": durations["post"],
        },
    }


_GROUPS: Mapping[Any, str] = {
    telemetry.REQUESTS: "answers",
    telemetry.BATCH_SIZE: "batch",
    telemetry.QUEUE_TIME: "queue",
}

_STAGES = {"prefill": "pre", "decode": "run"}  # Open Inference's names of the stages of text


def _sum_metrics(service: str) -> _Totals:
    """Per model: answers given and refused; batches and their sizes; of each stage, count and seconds."""
    found: _Totals = defaultdict(lambda: [0.0, 0.0])
    for metric in (telemetry.BATCH_SIZE, telemetry.QUEUE_TIME, telemetry.LATENCY, telemetry.REQUESTS):
        for sample in (sample for family in metric.collect() for sample in family.samples):
            kind, labels = sample.name.rpartition("_")[2], sample.labels
            if labels["service"] != service or kind not in {"count", "sum", "total"}:
                continue
            group = _GROUPS.get(metric) or _STAGES.get(labels["stage"], labels["stage"])
            second = kind == "sum" or (kind == "total" and labels["status"] not in {"200", "OK"})
            found[labels["model"], group][second] += sample.value
    return found
