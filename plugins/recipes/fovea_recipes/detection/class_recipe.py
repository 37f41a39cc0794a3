"""Parts shared by the recipes of classifiers on photographs: folders of classes, augmentation, a teacher, measures.

Knows pictures and labels; a recipe adds its network. The teacher is EfficientNet-Lite0, which has seen ImageNet: it is
fine-tuned on the same folder first, and a small network then learns what it says about every augmented picture.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from fovea_recipes.detection.patnet.recipe import normalise_patches
from fovea_recipes.training.calibrate import ServingFacts, reliability_facts
from fovea_recipes.training.data.augment import Augment, warp_picture
from fovea_recipes.training.data.class_folders import ClassSet, find_classes
from fovea_recipes.training.data.survey import FileProblem, Survey, near_copies
from fovea_recipes.training.folder_recipe import FolderRecipe
from fovea_recipes.training.imagenet import load_imagenet
from fovea_recipes.training.intervals import mean_interval
from fovea_recipes.training.recipe import Batch, Schedule, decay_kernels, join_names, predict_in_batches
from fovea_recipes.training.score_calibration import fit_temperature
from fovea_recipes.training.trainer import OnStep, fit
from services.detection.layers.partial import PartialNetwork
from services.detection.servables.patches import MEAN, STD, pool_stages, resize_patch
from shared.vision.backbones.efficientnet_lite import EfficientNetLite0

EMPTY = ClassSet((), (), np.empty(0, np.int64))
TEACHER = Schedule(
    steps=900, batch=32, rate=6e-4, floor=1e-6, warm_up=60, decay=0.02, clip=5.0, ema=0.995, validate_every=100
)
"""How the teacher is fine-tuned; never for more steps than its student."""


class ClassRecipe(FolderRecipe):
    """A classifier on a folder of pictures, one folder per class."""

    known: ClassVar[int] = 400

    data: Path = Field(description="One folder per class, or `train` and `validation` with one each.")
    side: int = Field(160, multiple_of=32, description="Pixels of the square that the network sees.")
    augment: Augment = Augment(flip_y=0.0, turn=15.0, zoom=(0.9, 1.8), stretch=0.25)
    choose: float = Field(0.06, gt=0, lt=1, description="Share of the training pictures that chooses the checkpoint.")
    mixup: float = Field(0.3, ge=0, le=1, description="Share of batches in which pictures are mixed in pairs.")

    _train: ClassSet = PrivateAttr(EMPTY)
    _choose: ClassSet = PrivateAttr(EMPTY)
    _out: ClassSet = PrivateAttr(EMPTY)
    _pixels: list[NDArray[np.uint8]] = PrivateAttr(default_factory=list)

    def gather(self) -> str:
        whole, problems = find_classes(self.data)
        self.require(len(whole.names), 2, "classes", problems)
        self.require(len(whole), 2 * len(whole.names), "pictures", problems)
        out = self.is_held_out(whole.pictures)
        train, self._out = whole.take(np.flatnonzero(~out)), whole.take(np.flatnonzero(out))
        order = np.random.default_rng(self.seed).permutation(len(train)).tolist()
        stay = {*{int(train.labels[index]): index for index in order}.values()}  # one of each class is trained on
        spare = [index for index in order if index not in stay]
        aside = {*spare[: max(len(train.names), round(self.choose * len(train)))]}
        self._choose = train.take([index for index in order if index in aside] or order)
        self._train = train.take([index for index in order if index not in aside])
        bare = [name for name, count in self._train.counts.items() if not count]
        problems += [FileProblem(self.data / name, "has no picture to train on, so it is never found") for name in bare]
        self._pixels = self._train.load(round(self.side * 1.25))
        sizes = [image.shape[:2] for image in self._pixels]
        copies = near_copies(train.pictures, self._out.pictures)
        self._survey = Survey(len(train), len(self._out), whole.counts, sizes, problems, copies)
        return f"train:{train.digest} held-out:{self._out.digest}"

    def config(self) -> dict[str, Any]:
        return {"classes": len(self._train.names)}

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        chosen = rng.integers(len(self._train), size=self.schedule.batch)
        image = normalise_patches(np.stack([self._sample(self._pixels[index], rng) for index in chosen]))
        label = F.one_hot(torch.from_numpy(self._train.labels[chosen]), len(self._train.names)).float()
        if rng.random() < self.mixup:
            share, other = float(rng.beta(0.8, 0.8)), torch.from_numpy(rng.permutation(len(chosen)))
            image, label = image.lerp(image[other], share), label.lerp(label[other], share)
        yield {"image": image, "label": label}

    def _sample(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        target = (self.side, self.side)
        warp = self.augment.warp(rng, pixels.shape[:2], target)
        return self.augment.recolour(warp_picture(pixels, warp, target), rng)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(network, batch["image"]), batch["label"], label_smoothing=0.1)

    def logits(self, network: nn.Module, image: Tensor) -> Tensor:
        """The network in bfloat16, its logits in float32."""
        with self.autocast(image):
            made = network(image.contiguous(memory_format=torch.channels_last))
        return cast("Tensor", made).float()

    def score(self, network: nn.Module) -> float:
        logits = self.predict_logits(network, self._choose)
        labels = torch.from_numpy(self._choose.labels)
        return float((logits.argmax(1) == labels).float().mean()) - 0.1 * float(F.cross_entropy(logits, labels))

    def measure(self, network: nn.Module) -> dict[str, float]:
        right = (self.predict_logits(network, self._out).argmax(1).numpy() == self._out.labels).astype(float)
        by_class = {
            f"recall.{name}": float(right[self._out.labels == index].mean())
            for index, name in enumerate(self._out.names)
            if (self._out.labels == index).any()
        }
        self._intervals = {"top_1": mean_interval(right)}
        return {"top_1": float(right.mean()), "pictures": float(len(right))} | by_class

    def predict_logits(self, network: nn.Module, held: ClassSet, batch: int = 32) -> Tensor:
        """Logits (n, classes) of pictures as they are served."""
        patches = [self._patch(image) for image in held.load(10_000)]
        return predict_in_batches(network, np.stack(patches), normalise_patches, batch)

    def _patch(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return resize_patch(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), self.side, 1.0)

    def embedder(self, network: nn.Module) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None:
        maps = getattr(network, "maps", None)
        if maps is None:
            return None

        @torch.no_grad()
        def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            found = pool_stages([stage.numpy() for stage in maps(normalise_patches(self._patch(pixels)[None]))])[0]
            return np.asarray(found, np.float32)

        return embed

    def split_pictures(self) -> tuple[Sequence[Path], Sequence[Path]]:
        return self._train.pictures, self._out.pictures

    def vary(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        return self.augment.recolour(pixels, rng)

    def calibrate(self, network: nn.Module) -> ServingFacts:
        temperature = fit_temperature(self.predict_logits(network, self._choose).numpy(), self._choose.labels)
        logits = self.predict_logits(network, self._out)
        raw, said = logits.softmax(dim=1).max(dim=1), (logits / temperature).softmax(dim=1).max(dim=1)
        right = raw.indices.numpy() == self._out.labels
        sure = reliability_facts(raw.values.numpy(), said.values.numpy(), right)
        return super().calibrate(network) | ServingFacts({"temperature": temperature}) | sure

    def facts(self) -> dict[str, str]:
        return {
            **self.source_facts(len(self._out)),
            "data": f"{len(self._train)} pictures to train on, {len(self._choose)} to choose by, "
            f"{len(self._out)} held out",
            "names": join_names(self._train.names),
        }

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return decay_kernels(network, self.schedule)


class EfficientNetLite0Recipe(ClassRecipe, name="efficientnet-lite0", weights="efficientnet-lite0"):
    """EfficientNet-Lite0 from ImageNet, fine-tuned on a folder of classes: the teacher of the small classifiers."""

    schedule: Schedule = TEACHER

    def network(self) -> nn.Module:
        built = EfficientNetLite0(len(self._train.names))
        load_imagenet(built, tuple(MEAN.tolist()), tuple(STD.tolist()))
        return self.load_start(built)


class StudentRecipe(ClassRecipe, dtype="int8"):
    """A small classifier that learns from a fine-tuned EfficientNet-Lite0 on the same pictures."""

    schedule: Schedule = Schedule(
        steps=8000, batch=32, rate=2e-3, floor=1e-5, warm_up=300, decay=0.05, clip=5.0, ema=0.999, validate_every=400
    )
    mixup: float = 0.5
    temperature: float = Field(2.0, gt=0, description="Softens what teacher and student say before they are compared.")
    embedding: float = Field(1.0, ge=0, description="Weight of the angle between the features of both.")
    labels: float = Field(0.2, ge=0, description="Weight of the labels themselves.")
    teacher: EfficientNetLite0Recipe | None = Field(None, description="Another recipe of the teacher.")

    _teacher: EfficientNetLite0 | None = PrivateAttr(None)
    _taught: dict[str, float] = PrivateAttr(default_factory=dict)

    def config(self) -> dict[str, Any]:
        return {"size": "t0", **super().config()}

    def pretrain(self, cache: Path, device: str, on_step: OnStep | None) -> None:
        schedule = TEACHER.model_copy(update={"steps": min(TEACHER.steps, self.schedule.steps)})
        alike = ("data", "held_out", "group_by", "share", "side", "choose", "seed", "half")
        knobs = {name: getattr(self, name) for name in alike}
        recipe = self.teacher or EfficientNetLite0Recipe(**knobs, schedule=schedule)
        fitted = fit(recipe, cache / "teacher", device=device, on_step=on_step)
        self._taught = recipe.measure(fitted.network)
        self._teacher = cast("EfficientNetLite0", fitted.network)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        student, image = cast("PartialNetwork", network), batch["image"].contiguous(memory_format=torch.channels_last)
        with self.autocast(image):
            seen = student.avgpool_pre_head(student.maps(image)[-1]).flatten(1)
            logits = student.head(seen).float()
            known, said = self._ask(image)
        distance = F.cross_entropy(logits / self.temperature, (said / self.temperature).softmax(dim=1))
        angle = 1 - F.cosine_similarity(seen.float(), known, dim=1).mean()
        hard = F.cross_entropy(logits, batch["label"])
        return self.temperature**2 * distance + self.embedding * angle + self.labels * hard

    @torch.no_grad()
    def _ask(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's features (n, 1280) and logits (n, classes)."""
        teacher = cast("EfficientNetLite0", self._teacher).eval().to(image.device)
        features = teacher.embed(teacher.features(image)[-1])
        return features.float(), teacher.classifier(features).float()

    def measure(self, network: nn.Module) -> dict[str, float]:
        return super().measure(network) | {"teacher_top_1": self._taught["top_1"]}

    def facts(self) -> dict[str, str]:
        return super().facts() | {
            "departures": "distilled from an EfficientNet-Lite0 (ImageNet) that was fine-tuned on the same pictures"
        }


class PATNetRecipe(StudentRecipe, name="patnet", weights="patnet", serves="patnet"):
    """PATNet-T0, 2.2 million parameters, on a folder of your own."""


class FasterNetRecipe(StudentRecipe, name="fasternet", weights="fasternet", serves="fasternet"):
    """FasterNet-T0, 2.6 million parameters, on a folder of your own."""
