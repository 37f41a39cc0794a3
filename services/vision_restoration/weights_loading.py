"""Weights of a restorer: those of the package, or an official checkpoint and its VGG tower put together.

Knows where weights lie and how large their network is; knows no picture.
"""

import hashlib
from pathlib import Path

from fovea.api.tensors import TensorSpec
from fovea.errors import NotReady
from services.vision_restoration.variant import Variant
from shared.export.artifacts import ExportedForms
from shared.registry.weights import Manifest, NetworkSpec, Weights, find_weights, read_weights

NET, TOWER, WHOLE = "rrformer", "vgg19-features", "rrformer-restorer"
"""Names of the network, of its tower, and of both as one, in `network()` and as weights."""

TENSOR_NAMES = ("image", "restored")
"""Input and output as tensors, in the ONNX graph and on the Open Inference route."""

_FEATURES = 256
_BYTES = {"onnx": 75, "torch": 40}
"""Most bytes that a network takes per pixel of a window and channel at full resolution, by engine: measured."""


def load_weights(packaged: Path, imported: Path, name: str = WHOLE) -> Weights:
    """The weights to serve: those that were trained under a name, an imported checkpoint with its tower, or ours.

    Raises NotReady: a checkpoint was imported without its tower, or weights are missing or damaged.
    """
    if name != WHOLE or not (imported / f"{NET}.safetensors").exists():
        return read_weights(find_weights(name, packaged, imported))
    if not (imported / f"{TOWER}.safetensors").exists():
        raise NotReady(
            "An RRFormer checkpoint was imported, but not the VGG19 tower that it stands on.",
            hint=f"fovea import {TOWER} vgg19.pth (torchvision's ImageNet weights).",
        )
    net, tower = (read_weights(imported / f"{name}.safetensors") for name in (NET, TOWER))
    return _joined(net, tower)


def _joined(net: Weights, tower: Weights) -> Weights:
    """Both parts as one set of weights; official ones were trained as `released`, whatever the paper says."""
    arrays = {
        f"{part}.{key}": array
        for part, weights in (("tower", tower), ("net", net))
        for key, array in weights.arrays.items()
    }
    digest = hashlib.sha256((net.manifest.sha256 + tower.manifest.sha256).encode()).hexdigest()
    counts = [weights.manifest.parameters or 0 for weights in (net, tower)]
    config = {"variant": "released", **net.manifest.network.config, **tower.manifest.network.config}
    config.pop("levels", None)
    manifest = Manifest(
        name=WHOLE,
        origin="imported",
        network=NetworkSpec(name=WHOLE, config=config),
        sha256=digest,
        dtype="float32",
        parameters=sum(counts),
    )
    return Weights(arrays, manifest)


def build_artifacts(weights: Weights, variant: Variant, cache: Path) -> ExportedForms:
    """The forms of one variant: a graph for windows of any size on the grid; the shift mask is made within it."""
    spec = weights.manifest.network
    changed = spec.model_copy(update={"config": {**spec.config, "variant": variant}})
    manifest = weights.manifest.model_copy(update={"network": changed})
    given, wanted = (TensorSpec(name=name, datatype="FP32", shape=(-1, 3, -1, -1)) for name in TENSOR_NAMES)
    shapes = tuple({given.name: shape} for shape in ((1, 3, 64, 64), (2, 3, 96, 64), (1, 3, 128, 160)))
    return ExportedForms(
        Weights(weights.arrays, manifest), cache, (given,), (wanted,), tag=f"{variant}-v1", shapes=shapes
    )


def bytes_per_pixel(weights: Weights, engine: str) -> int:
    """Most memory that the network takes per pixel of a window; what a remote server takes is not ours to count."""
    features = int(weights.manifest.network.config.get("features", _FEATURES))
    return features * _BYTES.get(engine, _BYTES["onnx"])
