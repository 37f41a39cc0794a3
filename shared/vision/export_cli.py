"""The verb `fovea export`: a plug-in of the command line (entry-point group `fovea.verbs`).

Knows the terminal and which models there are; `shared.export` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shared.errors import InvalidOption
from shared.export.triton_repository import TritonOptions, write_model
from shared.registry.discovery import servables, services_with_models
from shared.registry.weights import find_weights, read_weights
from shared.settings import settings
from shared.vision.servable import VisionServable

__all__ = ["export", "export_triton", "find_exportable"]

export = typer.Typer(add_completion=False, no_args_is_help=True, help="Write models for other servers.")


@export.callback()
def _group() -> None:
    """Write models for other servers."""


@export.command("triton")
def export_triton(
    folder: Annotated[Path, typer.Argument(help="The model repository; made if it is not there.")],
    models: Annotated[list[str], typer.Argument(help="Names of vision models, as `fovea models` lists them.")],
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch that Triton makes.")] = 8,
    delay_us: Annotated[int, typer.Option(min=0, help="Longest wait for a batch to fill, microseconds.")] = 2000,
    instances: Annotated[int, typer.Option(min=1, help="Copies of each model per device.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="Where Triton runs them.")] = True,
    tensorrt: Annotated[bool, typer.Option(help="Let ONNX Runtime use TensorRT, in FP16.")] = False,
) -> None:
    """Write a model repository for NVIDIA Triton: config.pbtxt, ONNX graph, batching, warm-up and labels."""
    console = Console()
    for kind in [find_exportable(name) for name in models]:
        weights = read_weights(find_weights(kind.weights, kind.folder, settings().weights_dir))
        config = kind.data_config(weights)
        forms = kind.artifacts(weights, config.with_facts_of(weights), settings().cache_dir)
        batch = min(max_batch, kind.card.limits.max_batch or max_batch)
        options = TritonOptions(batch, delay_us, instances, gpu, tensorrt)
        place = write_model(folder, kind.card.name, forms, config.names, options)
        console.print(f"{place}: {weights.manifest.bytes:,} bytes of weights, {batch} at a time.")
    console.print(f"Try: tritonserver --model-repository={folder.resolve()}, then FOVEA_ENGINE=triton here.")


def find_exportable(name: str) -> type[VisionServable]:  # type: ignore[type-arg]  # of any request and answer
    """The class of a model that has an ONNX form.

    Raises:
        InvalidOption: There is no such vision model; the hint lists those there are.
    """
    found = {
        model: kind
        for service in services_with_models()
        for model, kind in servables(service).items()
        if issubclass(kind, VisionServable)
    }
    if name not in found:
        hint = f"Models with an ONNX form: {', '.join(sorted(found))}."
        raise InvalidOption(f"{name!r} is no vision model.", hint=hint, field="models")
    return found[name]
