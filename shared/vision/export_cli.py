"""Export served networks, for example as a model repository of a Triton server.

Knows the terminal and which models there are; `shared.export` writes.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fovea.errors import InvalidOption
from shared.export.triton_repository import TritonOptions, write_model
from shared.registry.discovery import servables, services_with_models
from shared.registry.measured import trained_servables
from shared.registry.weights import Weights, find_weights, read_weights
from shared.settings import settings
from shared.vision.servable import DataConfig, VisionServable

Kind = type[VisionServable[Any, Any, Any]]

export = typer.Typer(add_completion=False, no_args_is_help=True, help="Write models for other servers.")


@export.callback()
def _group() -> None:
    """Write models for other servers."""


@export.command("triton")
def export_triton(
    folder: Annotated[Path, typer.Argument(help="The model repository; made if it is not there.")],
    models: Annotated[list[str], typer.Argument(help="Names of vision models, as `fovea models` lists them.")],
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch that Triton takes.")] = 32,
    delay_us: Annotated[int, typer.Option(min=0, help="Longest wait for a batch to fill, microseconds.")] = 2000,
    instances: Annotated[int, typer.Option(min=1, help="Copies of each model per device.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="Where Triton runs them.")] = True,
    tensorrt: Annotated[bool, typer.Option(help="Let ONNX Runtime use TensorRT, in FP16.")] = False,
) -> None:
    """Write a model repository for NVIDIA Triton: config.pbtxt, ONNX graph, batching, warm-up and labels."""
    console = Console(soft_wrap=True, markup=False)
    for kind in [find_exportable(name) for name in models]:
        weights, config = read_exportable(kind)
        forms = kind.artifacts(weights, config, settings().cache_dir)
        batch = min(max_batch, kind.card.limits.max_batch or max_batch)
        options = TritonOptions(batch, delay_us, instances, gpu, tensorrt)
        place = write_model(folder, kind.card.name, forms, config.names, options)
        console.print(f"{place}: {weights.manifest.bytes:,} bytes of weights, {batch} at a time.")
    console.print(f"Try: tritonserver --model-repository={folder.resolve()}, then FOVEA_ENGINE=triton here.")


@export.command("graphs")
def export_graphs(
    folder: Annotated[Path, typer.Argument(help="Where the graphs go; made if it is not there.")],
    models: Annotated[list[str] | None, typer.Argument(help="Names of vision models.")] = None,
    service: Annotated[str | None, typer.Option(help="All models of this service.")] = None,
) -> None:
    """Write the ONNX graphs of models, compared with torch, for services that have none: FOVEA_GRAPHS_DIR."""
    console = Console(soft_wrap=True, markup=False)
    kinds = [find_exportable(name) for name in models or ()]
    kinds += _vision_models(service).values() if service else ()
    if not kinds:
        raise InvalidOption("No model is named.", hint="Name some, or a service with --service.", field="models")
    for kind in kinds:
        for forms in kind.all_artifacts(*read_exportable(kind), folder):
            graph = forms.graph()
            console.print(f"{kind.card.name}: {graph.name}, {graph.stat().st_size:,} bytes")


def find_exportable(name: str) -> Kind:
    """The class of a model that has an ONNX form, of those trained here too.

    Raises InvalidOption: there is no such vision model; the hint lists those there are.
    """
    found = {name: kind for service in services_with_models() for name, kind in _vision_models(service).items()}
    if name not in found:
        hint = f"Models with an ONNX form: {', '.join(sorted(found))}."
        raise InvalidOption(f"{name!r} is not a vision model.", hint=hint, field="models")
    return found[name]


def _vision_models(service: str) -> dict[str, Kind]:
    known = servables(service)
    every = known | trained_servables(known, settings().weights_dir)
    return {name: kind for name, kind in every.items() if issubclass(kind, VisionServable)}


def read_exportable(kind: Kind) -> tuple[Weights, DataConfig]:
    """The weights that a model serves here, and how their pictures must be prepared."""
    weights = read_weights(find_weights(kind.weights, kind.folder, settings().weights_dir))
    return weights, kind.data_config(weights).with_facts_of(weights)
