"""Recipe of the served PraNet: EfficientNet-Lite0 from ImageNet, fine-tuned on a folder of frames and masks.

Knows folders of pictures and masks; the committed weights were made from Kvasir-SEG by it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from scipy.special import expit, logit
from torch import Tensor, nn

from fovea_recipes.medical_seg.empty_crops import choose_peak, crops_without_polyp, drop_faint, share_clean
from fovea_recipes.medical_seg.evaluation import (
    PolypRecipe,
    mean_dice_at_half,
    normalise_frames,
    predict_maps,
    score_frames,
    score_thresholds,
)
from fovea_recipes.medical_seg.losses import deep_supervision
from fovea_recipes.training.calibrate import ServingFacts, reliability_facts
from fovea_recipes.training.data.augment import Augment, Warp, warp_picture
from fovea_recipes.training.data.mask_folders import MaskSet, find_masks, read_mask
from fovea_recipes.training.data.survey import FileProblem, Survey, near_copies, picture_size, unreadable
from fovea_recipes.training.folder_recipe import FolderRecipe, epoch, is_empty, swap_ends
from fovea_recipes.training.imagenet import load_imagenet
from fovea_recipes.training.recipe import Batch, MultiScale, Schedule, decay_kernels
from fovea_recipes.training.score_calibration import fit_temperature
from services.medical_seg.models.pranet_lite import PraNetLite
from services.medical_seg.preprocess import MEAN, STD, resize_and_normalise
from shared.vision.backbones.efficientnet_lite import EfficientNetLite0
from shared.vision.novelty import InDistributionModel

Pixels = NDArray[np.uint8]

Loaded = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Frames (n, h, w, 3) and soft masks (n, h, w)."""

NOTHING: Loaded = (np.empty((0, 0, 0, 3), np.uint8), np.empty((0, 0, 0), np.uint8))


class PraNetLiteRecipe(
    PolypRecipe, FolderRecipe, name="pranet", weights="pranet", builds="pranet-lite", serves="pranet"
):
    """PraNet on EfficientNet-Lite0, 4.35 million parameters, from ImageNet weights, on a folder of your own."""

    schedule: Schedule = Schedule(
        steps=3000, batch=16, rate=1e-3, floor=1e-6, warm_up=100, decay=0.02, clip=5.0, ema=0.998, validate_every=100
    )
    scale: MultiScale = MultiScale(side=352, rates=(0.64, 0.73, 0.91, 1.0))
    augment: Augment = Augment()
    data: Path = Field(description="`images` and `masks`, or `train` and `validation` with both; or pictures and COCO.")
    names: tuple[str, ...] = Field(
        (),
        exclude_if=is_empty,  # as that of `foreign`
        description="Classes of COCO files that are marked, all of them alike; left out, every class.",
    )
    width: float = 0.375
    decoder: int = 32
    backbone_share: float = Field(0.4, gt=0, description="Learning rate of the backbone, as a share of the decoder's.")
    empty: float = Field(0.12, ge=0, lt=1, description="Share of samples that are crops without any polyp.")
    choose: int = Field(48, ge=1, description="Training frames set aside to choose the checkpoint.")

    _train: Loaded = PrivateAttr(NOTHING)
    _choose: Loaded = PrivateAttr(NOTHING)
    _out: MaskSet = PrivateAttr(MaskSet((), ()))
    _frames: tuple[Path, ...] = PrivateAttr(())

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "decoder": self.decoder}

    def network(self) -> nn.Module:
        built = cast("PraNetLite", super().network())
        if self.start is None:
            load_imagenet(cast("EfficientNetLite0", built.backbone), tuple(MEAN.tolist()), tuple(STD.tolist()))
        return built

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return decay_kernels(network, self.schedule, self.backbone_share)

    def gather(self) -> str:
        pairs, problems = find_masks(self.data, self._cache / "masks", self.names)
        problems += _broken(pairs)
        bad = {each.path for each in problems}
        pairs = pairs.take(
            [i for i, both in enumerate(zip(pairs.pictures, pairs.masks, strict=True)) if not bad & {*both}]
        )
        self.require(len(pairs), 4, "pictures with masks", problems)
        out = self.is_held_out(pairs.pictures)
        train, self._out = pairs.take(np.flatnonzero(~out)), pairs.take(np.flatnonzero(out))
        order = np.random.default_rng(self.seed).permutation(len(train))
        aside = max(1, min(self.choose, len(train) // 4))
        images, masks = train.take(order).load(self.scale.side)
        marks = np.any(masks > 128, axis=(1, 2))
        marked = int(marks.sum())
        self.require(marked, 2, "pictures with a mark to train on", problems)
        held = self._out.load_masks(self.scale.side) > 128  # as they are measured: small marks are gone then
        self.require(int(held.any(axis=(1, 2)).sum()), 1, "held-out marks", problems)
        ends = swap_ends(marks, aside)
        images[ends], masks[ends] = images[ends[::-1]], masks[ends[::-1]]
        self._frames = train.pictures
        self._choose, self._train = (images[:aside], masks[:aside]), (images[aside:], masks[aside:])
        self._survey = Survey(
            len(train),
            len(self._out),
            {"marked": marked, "empty": len(train) - marked},
            [picture_size(path) for path in pairs.pictures],
            problems,
            near_copies(train.pictures, self._out.pictures),
        )
        return f"train:{train.digest} held-out:{self._out.digest}"

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        images, masks = self._train
        (side,) = self.scale.sides(rng)
        made = [
            self._sample(images[i], masks[i], side, rng)
            for i in epoch(step, self.schedule.batch, len(images), self.seed)
        ]
        mask = np.stack([mask for _, mask in made])[:, None]
        yield {
            "image": normalise_frames(np.stack([image for image, _ in made])),
            "mask": torch.from_numpy(mask.astype(np.float32) / 255),
        }

    def _sample(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], side: int, rng: np.random.Generator) -> Loaded:
        target = (side, side)
        warp = self.augment.warp(rng, mask.shape, target)
        if rng.random() < self.empty:
            warp = _without_polyp(mask, warp, side, rng)
        return self.augment.recolour(warp_picture(image, warp, target), rng), warp_picture(mask, warp, target)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        with self.autocast(image):
            maps = network(image)
        return deep_supervision([logits.float() for logits in maps], batch["mask"])

    def score(self, network: nn.Module) -> float:
        images, masks = self._choose
        return mean_dice_at_half(predict_maps(network, images), masks > 128)

    def measure(self, network: nn.Module) -> dict[str, float]:
        images, masks = self._out.load(self.scale.side)
        maps, marked = predict_maps(network, images), masks > 128
        dice = np.array(
            [mean_dice_at_half(maps[i : i + 1], marked[i : i + 1]) for i in np.flatnonzero(marked.any((1, 2)))]
        )
        averages = self.average(mean_dice=score_thresholds(maps, marked), dice_at_half=dice)
        return score_frames(maps, marked) | averages | {"median_dice_at_half": float(np.median(dice))}

    def embedder(self, network: nn.Module) -> Callable[[Pixels], NDArray[np.float32]]:
        run, side = cast("PraNetLite", network).prediction_and_features, self.scale.side

        @torch.no_grad()
        def embed(pixels: Pixels) -> NDArray[np.float32]:
            x = torch.from_numpy(resize_and_normalise(pixels, side))[None]
            return cast("NDArray[np.float32]", run(x)[1][0].numpy())

        return embed

    def split_pictures(self) -> tuple[Sequence[Path], Sequence[Path]]:
        return self._frames, self._out.pictures

    def vary(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        height, width = pixels.shape[:2]
        part = rng.uniform(0.35, 1.0)
        y, x = int(rng.uniform(0, (1 - part) * height)), int(rng.uniform(0, (1 - part) * width))
        near = pixels[y : y + max(1, int(part * height)), x : x + max(1, int(part * width))]
        return self.augment.recolour(np.ascontiguousarray(near), rng)

    def calibrate(self, network: nn.Module) -> ServingFacts:
        maps, masks = predict_maps(network, self._choose[0]), self._choose[1] > 128
        temperature = fit_temperature(logit(_some(maps).clip(1e-6, 1 - 1e-6)), _some(masks))
        crops = crops_without_polyp(*self._choose, np.random.default_rng((self.seed, 23)))
        peak = choose_peak(_cooled(maps, temperature), masks, _cooled(predict_maps(network, crops), temperature))
        images, out = self._out.load(self.scale.side)
        raw, marked = predict_maps(network, images), out > 128
        said = _cooled(raw, temperature)
        near = crops_without_polyp(images, out, np.random.default_rng((self.seed, 24)))
        clean = _cooled(predict_maps(network, near), temperature)
        measured = {"dice_as_served": mean_dice_at_half(drop_faint(said, peak), marked)}
        if len(clean):  # there are none where marks fill the frames
            measured |= {"clean_crops": share_clean(clean, peak), "crops": float(len(clean))}
        served = ServingFacts({"temperature": temperature, "peak": peak}, metrics=measured)
        sure = reliability_facts(_some(raw), _some(said), _some(marked))
        return self._with_false_warnings(super().calibrate(network), network, near) | served | sure

    def _with_false_warnings(self, found: ServingFacts, network: nn.Module, near: Pixels) -> ServingFacts:
        """With how often crops (n, s, s, 3) without a polyp, which are frames from nearer by, are warned of."""
        familiar, embed = InDistributionModel.read(found.arrays), self.embedder(network)
        if familiar is None or not len(near):
            return found
        far = familiar.distance(np.stack([embed(crop) for crop in near])) > found.constants["novelty"]
        return found | ServingFacts(metrics={"false_warnings_crops": float(far.mean())})

    def facts(self) -> dict[str, str]:
        return {
            **self.source_facts(len(self._out)),
            "data": f"{len(self._train[0])} frames to train on, {len(self._choose[0])} to choose by, "
            f"{len(self._out)} held out",
            "loss": "paper",
            "departures": "EfficientNet-Lite0 for Res2Net-50; averaged weights; augmentation; crops without polyps",
        }


def _cooled(maps: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities of logits over a temperature."""
    return np.asarray(expit(logit(maps.clip(1e-6, 1 - 1e-6)) / temperature), np.float32)


def _some(maps: NDArray[Any], step: int = 7) -> NDArray[Any]:
    """Pixels on a grid: neighbours say the same."""
    return maps[:, ::step, ::step].reshape(-1)


def _without_polyp(mask: NDArray[np.uint8], warp: Warp, side: int, rng: np.random.Generator, tries: int = 12) -> Warp:
    """A map that enlarges a part of the frame in which nothing is marked; `warp` itself where none is found."""
    height, width = mask.shape
    for _ in range(tries):
        part = rng.uniform(0.3, 0.7)
        x, y = rng.uniform(0, (1 - part) * width), rng.uniform(0, (1 - part) * height)
        if not mask[int(y) : int(y + part * height) + 1, int(x) : int(x + part * width) + 1].any():
            return np.array(
                [
                    [side / (part * width), 0, -x * side / (part * width)],
                    [0, side / (part * height), -y * side / (part * height)],
                ]
            )
    return warp


def _broken(pairs: MaskSet) -> list[FileProblem]:
    """Files that can't be decoded, and masks of another shape than their picture's."""
    problems = unreadable(pairs.pictures) + unreadable(pairs.masks, read_mask)
    bad = {each.path for each in problems}
    for picture, mask in zip(pairs.pictures, pairs.masks, strict=True):
        if bad & {picture, mask}:
            continue
        (h1, w1), (h2, w2) = picture_size(picture), picture_size(mask)
        if abs(w1 * h2 - h1 * w2) > 0.02 * w1 * h2:
            problems.append(
                FileProblem(mask, "has another shape than its picture, left out", f"{w2}×{h2} for {w1}×{h1}")
            )
    return problems
