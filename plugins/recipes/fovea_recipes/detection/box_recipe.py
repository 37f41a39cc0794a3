"""Parts shared by the recipes of box detectors on photographs: data in memory, mosaics, augmentation, measures.

Knows data sets with boxes and the losses' targets; a recipe adds its network and the loss of its branches.
"""

import operator
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from fovea_recipes.detection.box_evaluation import map50
from fovea_recipes.detection.metrics.boxes import box_scores, resampled_map50
from fovea_recipes.detection.model_selection import LEAST, choose_scores
from fovea_recipes.training.calibrate import ServingFacts
from fovea_recipes.training.data.augment import Augment, warp_boxes, warp_picture
from fovea_recipes.training.data.box_sets import BoxSet, check_boxes, find_boxes
from fovea_recipes.training.data.survey import Survey, list_unread, near_copies
from fovea_recipes.training.folder_recipe import FolderRecipe, swap_ends
from fovea_recipes.training.intervals import bootstrap
from fovea_recipes.training.recipe import Batch, MultiScale, decay_kernels, join_names, to_tensor
from services.detection.boxes import letterbox, nms, unletterbox
from services.detection.boxes.letterbox import GREY

Pixels = NDArray[np.uint8]
Rows = NDArray[np.float32]
Point = NDArray[np.float64]
Places = Sequence[tuple[int, Point]]
"""Boxes of one class: the index of the picture and the middle of the box in it."""

STRIDE = 32


class BoxRecipe(FolderRecipe):
    """A detector on a folder of pictures with boxes; served squares, or else any multiple of the coarsest stride."""

    square: ClassVar[bool] = True

    data: Path = Field(description="Pictures with boxes: Pascal VOC, COCO, YOLO, or masks.")
    side: int = Field(640, multiple_of=32, description="Longest side of a picture when it is served.")
    scale: MultiScale = MultiScale(side=320, rates=(1.0,))
    augment: Augment = Augment()
    names: tuple[str, ...] = Field((), description="Classes by id, where the data does not name them.")
    grow: int = Field(10, ge=0, description="Pixels by which parts of masks grow before they are joined and boxed.")
    mosaic: float = Field(0.5, ge=0, le=1, description="Share of samples that are put together from four pictures.")
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=operator.not_,  # knobs of runs that began before it existed stay the same
        description="Share of samples around a box of a drawn class, each class as often as any other.",
    )
    choose: int = Field(20, ge=1, description="Training pictures set aside to choose the checkpoint.")

    _train: BoxSet = PrivateAttr(BoxSet((), (), ()))
    _choose: BoxSet = PrivateAttr(BoxSet((), (), ()))
    _out: BoxSet = PrivateAttr(BoxSet((), (), ()))
    _pixels: dict[Path, Pixels] = PrivateAttr(default_factory=dict)
    _places: list[Places] = PrivateAttr(default_factory=list)

    @abstractmethod
    def branch_loss(self, maps: Any, targets: Tensor) -> Tensor:
        """The loss of what the network gives, in float32."""

    def gather(self) -> str:
        found, problems, sizes = check_boxes(find_boxes(self.data, self.names, self.grow))
        problems += list_unread(self.data)
        self.require(sum(len(rows) for rows in found.rows), 1, "boxes", problems)
        self.require(len(found), 4, "pictures that can be read", problems)
        out = self.is_held_out(found.pictures)
        train, self._out = found.take(np.flatnonzero(~out)), found.take(np.flatnonzero(out))
        self.require(sum(map(len, self._out.rows)), 1, "boxes in held-out pictures", problems)
        boxed = np.array([len(rows) > 0 for rows in train.rows])
        self.require(int(boxed.sum()), 2, "pictures with boxes to train on", problems)
        order = np.random.default_rng(self.seed).permutation(len(train))
        aside = max(1, min(self.choose, len(train) // 4))
        ends = swap_ends(boxed[order], aside)
        order[ends] = order[ends[::-1]]
        self._choose, self._train = train.take(np.sort(order[:aside])), train.take(np.sort(order[aside:]))
        self._pixels = {path: self.read(path) for path in self._train.pictures}
        self._places = _find_places(self._train)
        copies = near_copies(train.pictures, self._out.pictures)
        self._survey = Survey(len(train), len(self._out), found.counts, sizes, problems, copies)
        return f"train:{train.digest} held-out:{self._out.digest}"

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return decay_kernels(network, self.schedule)

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        (side,) = self.scale.sides(rng)
        images, targets = [], []
        for place in range(self.schedule.batch):
            image, rows = self._mosaic(side, rng) if rng.random() < self.mosaic else self._single(side, rng)
            images.append(self.augment.recolour(image, rng))
            centre, size = (rows[:, 1:3] + rows[:, 3:]) / 2 / side, (rows[:, 3:] - rows[:, 1:3]) / side
            targets.append(np.column_stack((np.full(len(rows), place, np.float32), rows[:, :1], centre, size)))
        yield {"image": to_tensor(np.stack(images)), "targets": torch.from_numpy(np.concatenate(targets)).float()}

    def _draw(self, rng: np.random.Generator) -> tuple[int, Point | None]:
        """Index of a picture; and a point of it that should be seen, where a box was drawn."""
        if not self.balance or rng.random() >= self.balance:
            return int(rng.integers(len(self._train))), None
        places = self._places[int(rng.integers(len(self._places)))]
        return places[int(rng.integers(len(places)))]

    def _single(self, side: int, rng: np.random.Generator) -> tuple[Pixels, Rows]:
        index, point = self._draw(rng)
        pixels = self._pixels[self._train.pictures[index]]
        warp = self.augment.warp(rng, pixels.shape[:2], self._canvas(side), keep_aspect=True)
        if point is None:
            warp[:, 2] += (side - self._canvas(side)[0]) / 2
        else:
            warp[:, 2] = rng.uniform(0.2, 0.8, 2) * side - warp[:, :2] @ point
        return warp_picture(pixels, warp, (side, side), GREY), _moved(self._train.rows[index], warp, side, side)

    def _canvas(self, side: int) -> tuple[int, int]:
        """Size that a picture is fitted into before it is cut to `side`: its size when served, in proportion."""
        whole = round(self.side * side / self.scale.side)
        return whole, whole

    def _mosaic(self, side: int, rng: np.random.Generator) -> tuple[Pixels, Rows]:
        """Four pictures, each in a quarter of the canvas around a drawn point."""
        page, rows = np.empty((side, side, 3), np.uint8), []
        x, y = (int(rng.uniform(0.3, 0.7) * side) for _ in range(2))
        for left, top, right, bottom in ((0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side)):
            index, point = self._draw(rng)
            pixels = self._pixels[self._train.pictures[index]]
            warp = self.augment.warp(rng, pixels.shape[:2], self._canvas(side), keep_aspect=True)
            warp *= rng.uniform(0.6, 1.0)
            size = np.array([right - left, bottom - top])
            centre = np.array([pixels.shape[1], pixels.shape[0]]) / 2 if point is None else point
            warp[:, 2] = size / 2 - warp[:, :2] @ centre + rng.uniform(-0.4, 0.4, 2) * size
            page[top:bottom, left:right] = warp_picture(pixels, warp, (bottom - top, right - left), GREY)
            found = _moved(self._train.rows[index], warp, right - left, bottom - top)
            rows.append(found + np.array([0, left, top, left, top], np.float32))
        return page, np.concatenate(rows)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        with self.autocast(image):
            maps = network(image)
        return self.branch_loss(maps, batch["targets"])

    def score(self, network: nn.Module) -> float:
        truth, loose, _ = self.collect_detections(network, self._choose)
        return map50(truth, loose)

    def measure(self, network: nn.Module) -> dict[str, float]:
        truth, loose, served = self.collect_detections(network, self._out)
        ways = {"map50": loose, "map50_served": served}
        self._intervals = {name: bootstrap(len(truth), resampled_map50(truth, rows)) for name, rows in ways.items()}
        scores = box_scores(truth, loose, self._out.names)
        return scores | {"map50_served": map50(truth, served), "pictures": float(len(truth))}

    @torch.no_grad()
    def collect_detections(self, network: nn.Module, held: BoxSet) -> tuple[list[Rows], list[Rows], list[Rows]]:
        """Truth; detections of the published protocol (boxes above an IoU of 0.7 go); and all that may be served."""
        predict = cast("Any", network.eval()).predictions
        loose, served = list[Rows](), list[Rows]()
        for path in held.pictures:
            pixels = self.read(path)
            page, _, _ = letterbox(pixels, self.side, STRIDE, auto=not self.square)
            raw = predict(to_tensor(page[None])).numpy()
            (many,) = nms(raw, confidence=0.001, iou=0.7, multi_label=True, max_detections=300)
            for rows, found in ((loose, many), (served, nms(raw, confidence=LEAST)[0])):
                boxes = unletterbox(found[:, :4], page.shape[:2], pixels.shape[:2])
                rows.append(np.column_stack([boxes, found[:, 4:]]))
        return list(held.rows), loose, served

    def embedder(self, network: nn.Module) -> Callable[[Pixels], NDArray[np.float32]]:
        run = cast("Any", network).predictions_and_features

        @torch.no_grad()
        def embed(pixels: Pixels) -> NDArray[np.float32]:
            page, _, _ = letterbox(pixels, self.side, STRIDE, auto=not self.square)
            return cast("NDArray[np.float32]", run(to_tensor(page[None]))[1][0].numpy())

        return embed

    def split_pictures(self) -> tuple[Sequence[Path], Sequence[Path]]:
        return self._train.pictures, self._out.pictures

    def vary(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return self.augment.recolour(pixels, rng)

    def calibrate(self, network: nn.Module) -> ServingFacts:
        """And how sure scores are, and from which on detections are counted.

        Both are chosen on every second held-out picture and measured on the others.
        """
        truth, _, found = self.collect_detections(network, self._out)
        chosen, intervals = choose_scores(truth, found, self._out.names)
        self._intervals |= intervals
        return super().calibrate(network) | chosen

    def facts(self) -> dict[str, str]:
        return {
            **self.source_facts(len(self._out)),
            "data": f"{len(self._train)} pictures to train on, {len(self._choose)} to choose by, "
            f"{len(self._out)} held out",
            "names": join_names(self._train.names),
            "departures": "AdamW; averaged weights (EMA); mosaics of four",
        }


def _find_places(held: BoxSet) -> list[Places]:
    """Where the boxes of each class are, of those classes that have any."""
    found: dict[int, list[tuple[int, Point]]] = {}
    for index, rows in enumerate(held.rows):
        for kind, x1, y1, x2, y2 in rows.tolist():
            found.setdefault(int(kind), []).append((index, np.array([(x1 + x2) / 2, (y1 + y2) / 2])))
    return [found[kind] for kind in sorted(found)]


def _moved(rows: Rows, warp: NDArray[np.float64], width: int, height: int) -> Rows:
    """Boxes under a map, cut to a canvas; those of which less than a third is left go."""
    moved = warp_boxes(rows[:, 1:], warp)
    cut = np.clip(moved, 0, np.array([width, height] * 2, np.float32))
    area, left = ((box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=1) for box in (moved, cut))
    thin = (cut[:, 2:] - cut[:, :2]).min(axis=1, initial=np.inf)
    stay = (left > area / 3) & (thin > 3)
    return np.column_stack([rows[stay, :1], cut[stay]]).astype(np.float32)
