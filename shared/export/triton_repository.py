"""Triton model repository: a folder per model with `config.pbtxt`, the ONNX graph and the class names.

`config.pbtxt` is written through NVIDIA's own protobuf schema, which `tritonclient` ships, so that a field that Triton
does not know can't be written. Knows exported graphs and the schema; knows nothing about services.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption
from shared.export.artifacts import ExportedForms

BACKEND: Final = "onnxruntime"
GRAPH_FILE, LABELS_FILE, CONFIG_FILE = "model.onnx", "labels.txt", "config.pbtxt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """How Triton runs the models.

    Attributes:
        max_batch: Largest batch of a graph whose batch axis is free; a service may send 32 patches of a picture.
        delay_us: Longest wait for a batch to fill, microseconds.
        instances: Copies of a model per device.
        has_gpu: Whether instances are on GPUs.
        has_tensorrt: Whether ONNX Runtime hands what it can to TensorRT, in FP16; the first start takes minutes.
    """

    max_batch: int = 32
    delay_us: int = 2000
    instances: int = 1
    has_gpu: bool = True
    has_tensorrt: bool = False


def write_model(
    folder: Path, name: str, forms: ExportedForms, labels: Sequence[str], options: TritonOptions, version: int = 1
) -> Path:
    """Write one model into a repository, in place of what was there under its name; return its folder.

    The graph is exported if need be, which may raise Fault; labels are class names by id, or none. Raises InvalidOption
    if the name can't be a folder.
    """
    if not _NAME.fullmatch(name):
        raise InvalidOption(f"{name!r} can't be the name of a model in a repository.", field="model")
    graph, place = forms.graph(), folder / name
    config = build_config(name, forms, labels, options)
    (place / str(version)).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(graph, place / str(version) / GRAPH_FILE)
    if labels:
        (place / LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), "utf-8")
    (place / CONFIG_FILE).write_text(text_format.MessageToString(config), "utf-8")
    return place


def build_config(name: str, forms: ExportedForms, labels: Sequence[str], options: TritonOptions) -> Any:
    """The `ModelConfig` of one model, as Triton's schema has it."""
    is_batched = all(spec.shape[:1] == (-1,) for spec in (*forms.inputs, *forms.outputs))
    config = schema.ModelConfig(
        name=name, backend=BACKEND, default_model_filename=GRAPH_FILE, max_batch_size=options.max_batch * is_batched
    )
    for side, specs in ((config.input, forms.inputs), (config.output, forms.outputs)):
        for spec in specs:
            tensor = side.add(name=spec.name, data_type=_datatype(spec), dims=spec.shape[is_batched:] or (1,))
            if not spec.shape[is_batched:]:
                tensor.reshape.SetInParent()  # a number per item: an axis of one for the client, none in the graph
    for output in config.output:
        if labels and tuple(output.dims) == (len(labels),):
            output.label_filename = LABELS_FILE
    if is_batched:
        config.dynamic_batching.preferred_batch_size.append(options.max_batch)
        config.dynamic_batching.max_queue_delay_microseconds = options.delay_us
    config.instance_group.add(count=options.instances, kind="KIND_GPU" if options.has_gpu else "KIND_CPU")
    if options.has_tensorrt:
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters["precision_mode"] = "FP16"
    _add_warmup(config, forms, is_batched=is_batched)
    for key, value in (("weights_sha256", forms.weights.manifest.sha256), ("graph", forms.tag)):
        config.parameters[key].string_value = value
    return config


def _add_warmup(config: Any, forms: ExportedForms, *, is_batched: bool) -> None:
    """One run of one item before the model is ready, at the shape that the graph was traced at."""
    warmup = config.model_warmup.add(name="first", batch_size=int(is_batched))
    traced = forms.shapes[0] if forms.shapes else {}
    for spec in forms.inputs:
        shape = traced.get(spec.name, tuple(1 if length == -1 else length for length in spec.shape))
        warmup.inputs[spec.name].data_type = schema.DataType.Value(_datatype(spec))
        warmup.inputs[spec.name].dims.extend(shape[is_batched:] or (1,))
        if spec.datatype.startswith(("FP", "BF")):
            warmup.inputs[spec.name].random_data = True
        else:
            warmup.inputs[spec.name].zero_data = True


def _datatype(spec: TensorSpec) -> str:
    """Triton's name of a datatype of Open Inference."""
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
