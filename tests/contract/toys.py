"""One toy of each family of vision models, for the whole contract: mistakes show here as on real models, but sooner."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from fovea_actions.action_detector import ActionDetector
from fovea_planning.servables.scanpath_predictor import ScanpathPredictor
from services.detection.servables.box_detector import BoxDetector
from services.detection.servables.classifier import Classifier
from services.llm_longctx.serving.decoder_model import DecoderModel
from services.llm_longctx.tests.conftest import write_folder
from services.medical_seg.segmenter import Segmenter
from services.vision_restoration.restorer import Restorer
from shared.registry import Card, Servable, network
from shared.registry.weights import Manifest, NetworkSpec, write_weights
from shared.vision.draw import encode
from shared.vision.servable import VisionServable
from tests.contract.checks.weights import known_files
from tests.harness.models import toy_card

Kind = type[VisionServable[Any, Any, Any]]


@dataclass(frozen=True)
class Toy:
    """How one toy is made: of which family, network and weights, and what its manifest and its Card say."""

    base: Kind
    task: str
    network: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 4
    call: str = ""
    """Method that runs on a picture, for networks whose batch norms take their statistics from one."""
    centred: bool = False
    """Whether its pictures are centred around 0 rather than in 0..1."""


_SLIM = {"width": 0.125, "decoder": 8, "classifier": False}
_SIDE = {"recipe": {"scale": {"side": 64}}}
_PRANET: dict[str, Any] = {"example": {"threshold": 0.5}, "call": "prediction", "centred": True}

RECIPES = {
    "family-segmenter": Toy(Segmenter, "segment", "pranet", _SLIM, _SIDE, seed=9, **_PRANET),
    "family-other-segmenter": Toy(Segmenter, "segment", "pranet-v2", _SLIM, _SIDE, seed=1, **_PRANET),
    "family-detector": Toy(
        BoxDetector, "detect", "yolo9tr", {"classes": 3, "size": "l", "width": 0.125, "branch": "main"},
        {"recipe": {"side": 64}, "data": {"names": "crack,hole,patch"}},
        {"confidence": 0.3}, {"probe": lambda _, rows: {"images": _pages()[:rows].numpy()}},
        seed=4, call="predictions",
    ),
    "family-classifier": Toy(
        Classifier, "classify", "fasternet", {"size": "t0", "classes": 3},
        {"recipe": {"side": 32, "classes": ("a", "b", "c")}}, {"tile": 48},
    ),
    "family-actions": Toy(
        ActionDetector, "actions", "bmn-csa",
        {"features": 8, "length": 12, "semantics": 3, "samples": 4, "samples_per_bin": 2, "hidden": (16, 8, 8)},
        {}, {"duration": 32.0, "max_proposals": 10}, {"takes_semantics": True},
    ),
    "family-scanpath": Toy(
        ScanpathPredictor, "scanpath", "oat",
        {"model": 24, "layers": 1, "heads": 2, "feedforward": 16, "crop": (30, 29)},
        {}, {"target": 24, "mode": "sampled", "max_fixations": 20},
    ),
    "family-restorer": Toy(
        Restorer, "restore", "rrformer-restorer",
        {
            "widths": (4, 4, 8, 8, 8), "whole": False, "features": 16, "body": 16, "groups": 2, "blocks": 2,
            "heads": 2, "buffers": False, "variant": "paper",
        },
        card={"variants": ("paper", "released")},
    ),
}  # fmt: skip


class ToyDecoder(DecoderModel):
    """A random decoder of two layers that writes bytes."""

    folder: ClassVar[Path] = Path()
    card: ClassVar[Card] = toy_card(
        "family-decoder", "chat", notes=("No ONNX graph: its steps share a growing cache.",),
        example={"messages": [{"role": "user", "content": "one two three four"}], "max_tokens": 8, "temperature": 0},
    )  # fmt: skip

    @classmethod
    def source(cls) -> Path:
        return cls.folder


def _describe(name: str) -> type[VisionServable[Any, Any, Any]]:
    toy = RECIPES[name]
    card = toy_card(name, toy.task, example=dict(toy.example), **toy.card)
    parts = {"card": card, "weights": name, "__doc__": f"A toy {toy.base.__name__}.", "__module__": __name__}
    made: Kind = type(toy.base)(f"Toy{toy.base.__name__}", (toy.base,), {**parts, **toy.parts})
    return made


VISION_TOYS: dict[str, Kind] = {name: _describe(name) for name in RECIPES}
"""Toys of vision by name. `write_toy` gives them weights."""

TOYS: dict[str, type[Servable[Any, Any]]] = {**VISION_TOYS, "family-decoder": ToyDecoder}
"""All toys by name."""


def write_toy(name: str, folder: Path) -> Kind:
    """Write a toy's weights and its picture into a folder, and name both in its class."""
    kind, toy = VISION_TOYS[name], RECIPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(toy.seed)
        net = network(toy.network, **toy.config)
        if toy.call:
            enliven(net, toy)
    spec = NetworkSpec(name=toy.network, config=dict(toy.config))
    manifest = Manifest(name=name, origin="trained", network=spec, **toy.facts)
    digest = write_weights(folder, {key: tensor.numpy() for key, tensor in net.state_dict().items()}, manifest).sha256
    known_files()[digest] = folder / f"{name}.safetensors"
    kind.card, kind.folder = kind.card.model_copy(update={"weights": digest}), folder
    kind.sample = folder / "sample.png"
    kind.sample.write_bytes(encode(scene()))
    return kind


def write_toys(folder: Path) -> None:
    for name in VISION_TOYS:
        write_toy(name, folder)
    ToyDecoder.folder = write_folder(folder / "decoder")


def adopt_weights(kind: type[Servable[Any, Any]]) -> None:
    """Name on the Card of a class that is made from a toy the weights of that toy, as an author would."""
    for base in kind.__mro__[1:]:
        if base in VISION_TOYS.values():
            kind.card = kind.card.model_copy(update={"weights": base.card.weights})
            return


def enliven(net: nn.Module, toy: Toy) -> None:
    """Make the answers of random weights differ from place to place: statistics of a picture, and bolder scores."""
    classes, pages = toy.config.get("classes"), _pages()
    pages = (pages - 0.45) / 0.225 if toy.centred else pages
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees, which is this batch
    with torch.no_grad():
        for parameter in net.parameters():
            if len(parameter) == classes and parameter.ndim == 4:
                parameter.mul_(4)
            elif len(parameter) == classes:
                parameter.fill_(-2)
        getattr(net.train(), toy.call)(pages)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.clamp_(min=0.03)  # else other pictures explode, and the last bit of a sum shows
    net.eval()


def _pages() -> torch.Tensor:
    """The scene in 64 by 64 pixels, mirrored, turned over and shifted [4,3,64,64]: what statistics are taken from."""
    pixels = np.asarray(Image.fromarray(scene()).resize((64, 64)), np.float32)
    page = torch.from_numpy(pixels.transpose(2, 0, 1)[None]) / 255
    return torch.cat([page, page.flip(3), page.flip(2), page.roll(9, 3)])


def scene() -> np.ndarray:
    """A picture of 77 by 151 pixels with a bright, a dark and a striped patch."""
    rng = np.random.default_rng(6)
    page = np.full((77, 151, 3), (120, 90, 70), np.uint8) + rng.integers(0, 20, (77, 151, 3), dtype=np.uint8)
    page[8:40, 10:50] = 235, 60, 50
    page[44:70, 70:130] = 20, 30, 160
    page[5:35:3, 80:140] = 250
    return page
