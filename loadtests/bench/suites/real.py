"""Models on real pictures: what their manifests say, what the running product answers, and how long that takes.

Accuracy is that of the manifests, with its intervals, beside that of a plain network which was trained on the same
pictures (`loadtests.bench.baselines`; FasterNet for PATNet; the picture as it came for RRFormer). Where `--data` names
a folder with the data sets (`polyps`, `cells`, `pavement`, `clothing`), their held-out pictures are sent by HTTP too,
and the answers are scored.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import loadtests.bench.baselines
from fovea_recipes.detection.metrics.boxes import box_average_precision
from fovea_recipes.training.data.box_sets import find_boxes
from fovea_recipes.training.data.class_folders import find_classes
from fovea_recipes.training.data.mask_folders import find_masks
from fovea_recipes.training.data.splits import held_out
from loadtests.bench.contender import run_python
from loadtests.bench.real_scores import Ask, ask, score_boxes, score_classes, score_masks
from loadtests.bench.result import Row, Table, row
from services.detection.models.hieraedgenet_cells import HieraEdgeNetCellsBoxDetector
from services.detection.models.patnet import PATNetClassifier
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.medical_seg.models.pranet import PraNetSegmenter
from services.vision_restoration.models.rrformer import RRFormerRestorer
from shared.registry.weights import Manifest, read_manifest
from shared.vision.servable import VisionServable
from tests.harness.waiting import free_port, is_ready, wait_until

MODELS: tuple[tuple[str, str, type[VisionServable], tuple[str, ...]], ...] = (
    ("polyps", "medical-seg", PraNetSegmenter, ("dice_at_half", "median_dice_at_half", "clean_crops")),
    ("cells", "detection", HieraEdgeNetCellsBoxDetector, ("map50", "count_error_RBC", "count_total_RBC")),
    ("pavement", "detection", Yolo9trBoxDetector, ("map50", "ap50_crack", "ap50_pothole")),
    ("clothing", "detection", PATNetClassifier, ("top_1", "teacher_top_1")),
    ("", "vision-restoration", RRFormerRestorer, ("psnr", "psnr_gain", "psnr_gain_worst", "psnr_clean")),
)
"""Data set (empty: nothing is sent), service, model, and the figures of its manifest that are shown."""


BASELINES = Path(loadtests.bench.baselines.__path__[0])

PLAIN = {
    "pranet": ("semantic_fpn_polyps.json", "mean_dice"),
    "hieraedgenet-cells": ("ssdlite_cells.json", "map50"),
    "yolo9tr": ("ssdlite_pavement.json", "map50"),
}
"""Our weights: what was measured of the plain network, and the figure in it that is compared with our first one."""


def measure(rounds: int = 5, count: int = 10, data: Path | None = None) -> Table:
    """Manifests, then the product: latency of the sample, and held-out pictures where there are any."""
    rows: list[Row] = []
    for name, service, kind, shown in MODELS:
        rows += _manifest_rows(kind, shown)
        with _running(service, kind.card.name) as base:
            rows.append(_latency(ask(base), kind, rounds, min(count, 10)))
            if data is not None and name and (data / name).is_dir():
                rows += _scores(ask(base), kind, data / name)
    return Table(
        suite="real",
        title="Models on real pictures",
        baseline="a plain network on the same pictures, where there is one",
        how="Manifests: held-out pictures, 95 % interval by bootstrap over pictures. Product: one request at a time "
        "over HTTP, one thread. 1.00 where nothing is compared",
        rows=rows,
    )


def _manifest_rows(kind: type[VisionServable], shown: tuple[str, ...]) -> Iterator[Row]:
    """Figures of a manifest, those without an interval as their own ends; the first against a plain network's."""
    manifest = read_manifest(kind.folder / f"{kind.weights}.safetensors")
    plain = _plain_row(kind, manifest)
    for name in shown:
        value = manifest.metrics[name]
        low, high = manifest.intervals.get(name, (value, value))
        ratio = value / plain.median if plain is not None and name == shown[0] else 1.0
        yield Row(f"{manifest.name}: {name}", "", value, low, high, ratio, manifest.data["measured_on"])
    if plain is not None:
        yield plain


def _plain_row(kind: type[VisionServable], manifest: Manifest) -> Row | None:
    """Scores of a plain network of about the same size, trained and measured on the same pictures."""
    if manifest.name == "patnet":
        other = read_manifest(kind.folder / "fasternet.safetensors")
        value, (low, high) = other.metrics["top_1"], other.intervals["top_1"]
        return Row(
            "fasternet: top_1",
            "",
            value,
            low,
            high,
            1.0,
            f"{other.parameters / 1e6:.2f} M parameters; 1,500 steps where patnet had 5,000",
        )
    if "psnr_identity" in manifest.metrics:
        value = manifest.metrics["psnr_identity"]
        return Row("the picture as it came: psnr", "", value, value, value, 1.0)
    if manifest.name not in PLAIN:
        return None
    file, figure = PLAIN[manifest.name]
    found = json.loads((BASELINES / file).read_text("utf8"))["baseline"]
    value, (low, high) = found["metrics"][figure], found["interval"]
    note = f"{found['parameters'] / 1e6:.2f} M parameters, {found['pictures_seen']:,} pictures seen"
    return Row(f"{found['network']}: {figure}", "", value, low, high, 1.0, note)


def _latency(send: Ask, kind: type[VisionServable], rounds: int, count: int) -> Row:
    """Milliseconds of a request with the sample picture, median of each round."""
    picture, times = kind.sample.read_bytes(), []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        for _ in range(count):
            send(kind.card.task, picture, {"model": kind.card.name})
        times.append(1000 * (time.perf_counter() - begun) / count)
    return row(f"{kind.card.name}: a request", "ms", times[1:], statistics.median(times[1:]), "through the service")


def _scores(send: Ask, kind: type[VisionServable], folder: Path) -> list[Row]:
    """Scores of the service's answers to the held-out pictures."""
    name = kind.card.name
    if kind.card.task == "segment":
        frames, _ = find_masks(folder)
        out = frames.take(np.flatnonzero(held_out(frames.pictures, folder)))
        masks = score_masks(send, out, name)
        dice = np.array(masks.dice)
        note = f"{len(dice)} frames by HTTP, median {np.median(dice):.3f}, {masks.warned} warned of"
        return [_figure(f"{name}: Dice through the product", float(dice.mean()), note)]
    recipe = read_manifest(kind.folder / f"{kind.weights}.safetensors").recipe
    if kind.card.task == "classify":
        clothes, _ = find_classes(folder)
        shown = clothes.take(np.flatnonzero(held_out(clothes.pictures, folder, pattern=recipe["held_out"])))
        classes = score_classes(send, shown, name)
        note = f"{len(shown)} pictures by HTTP, {classes.warned} warned of"
        return [_figure(f"{name}: top-1 through the product", float(np.mean(classes.right)), note)]
    held = find_boxes(folder, recipe["names"], recipe["grow"])
    out = held.take(np.flatnonzero(held_out(held.pictures, folder, pattern=recipe["held_out"])))
    boxes = score_boxes(send, out, name)
    precision = float(box_average_precision(boxes.truth, boxes.found, (0.5,)).mean())
    there, seen = sum(map(len, boxes.truth)), sum(map(len, boxes.counted))
    note = f"{len(out)} pictures by HTTP, {seen} counted where {there} are marked, {boxes.warned} warned of"
    return [_figure(f"{name}: mAP@.5 through the product", precision, note)]


def _figure(name: str, value: float, note: str) -> Row:
    """A figure that is measured once; it may be 0."""
    return Row(name, "", value, value, value, 1.0, note)


@contextmanager
def _running(service: str, model: str) -> Iterator[str]:
    """A service of its own with one model, until it is no longer needed."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        ours = {"FOVEA_DATA_DIR": folder, "FOVEA_LOG_LEVEL": "WARNING", "FOVEA_INTRA_OP_THREADS": "1"}
        words = ["-m", "loadtests.bench.servers.real_service", str(port), service, model]
        with run_python(words, {**os.environ, **ours}):
            base = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_ready(base), 240, f"{service} is ready", pause_s=0.5)
            yield base
