"""Scores of real pictures that are sent to a running service: masks, boxes and classes.

Knows HTTP and folders of labelled pictures; knows no network. The answer is scored, not the model.
"""

import base64
import io
import json
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from fovea_recipes.training.data.box_sets import BoxSet
from fovea_recipes.training.data.class_folders import ClassSet
from fovea_recipes.training.data.mask_folders import MaskSet, read_mask

Ask = Callable[[str, bytes, dict[str, str]], dict[str, Any]]
"""Task, picture and options to an answer."""


@dataclass(slots=True)
class Masks:
    """Dice of each frame, milliseconds of each request, and how many were warned of."""

    dice: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    warned: int = 0


@dataclass(slots=True)
class Boxes:
    """Rows of each picture: truth (m, 5), found (n, 6) for average precision, and counted ones (k, 6)."""

    truth: list[np.ndarray] = field(default_factory=list)
    found: list[np.ndarray] = field(default_factory=list)
    counted: list[np.ndarray] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    warned: int = 0


@dataclass(slots=True)
class Classes:
    """Whether the likeliest class of each picture is its own, and how many were warned of."""

    right: list[bool] = field(default_factory=list)
    warned: int = 0


def ask(base: str, *, timeout: float = 120) -> Ask:
    """Ask a service at an address, by a form as a browser sends it."""

    def send(task: str, picture: bytes, options: dict[str, str]) -> dict[str, Any]:
        mark = uuid.uuid4().hex
        parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in options.items()]
        head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        body = "".join(parts).encode() + head.encode() + picture + f"\r\n--{mark}--\r\n".encode()
        request = urllib.request.Request(  # noqa: S310  # the address is the caller's own
            f"{base}/v1/{task}", body, {"Content-Type": f"multipart/form-data; boundary={mark}"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as reply:  # noqa: S310
            answer: dict[str, Any] = json.load(reply)
        return answer

    return send


def score_masks(send: Ask, frames: MaskSet, model: str) -> Masks:
    """Dice of the served mask of each frame, at the frame's own size."""
    made = Masks()
    for picture, mask in zip(frames.pictures, frames.masks, strict=True):
        begun = time.perf_counter()
        answer = send("segment", picture.read_bytes(), {"model": model, "include": "mask"})
        made.milliseconds.append(1000 * (time.perf_counter() - begun))
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"])))) > 0
        truth = read_mask(mask) > 128
        both = found.sum() + truth.sum()
        made.dice.append(float(2 * (found & truth).sum() / both) if both else 1.0)
        made.warned += bool(answer["warnings"])
    return made


def score_boxes(send: Ask, held: BoxSet, model: str) -> Boxes:
    """Served boxes of each picture: all faint ones for average precision, and those that are reported by default."""
    made = Boxes()
    for picture, rows in zip(held.pictures, held.rows, strict=True):
        begun = time.perf_counter()
        told = send("detect", picture.read_bytes(), {"model": model})
        made.milliseconds.append(1000 * (time.perf_counter() - begun))
        faint = send("detect", picture.read_bytes(), {"model": model, "confidence": "0.01", "iou": "0.7"})
        made.truth.append(rows)
        made.found.append(_rows(faint["detections"], held.names))
        made.counted.append(_rows(told["detections"], held.names))
        made.warned += bool(told["warnings"])
    return made


def score_classes(send: Ask, held: ClassSet, model: str) -> Classes:
    """The served class of each picture."""
    made = Classes()
    for picture, label in zip(held.pictures, held.labels, strict=True):
        answer = send("classify", picture.read_bytes(), {"model": model})
        made.right.append(answer["results"][0]["label"] == held.names[label])
        made.warned += bool(answer["warnings"])
    return made


def _rows(detections: Sequence[dict[str, Any]], names: Sequence[str]) -> np.ndarray:
    rows = [[*each["box"], each["score"], names.index(each["label"])] for each in detections]
    return np.array(rows, np.float64).reshape(-1, 6)
