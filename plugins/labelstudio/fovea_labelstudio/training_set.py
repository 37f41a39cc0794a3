"""People's labels, as folders that `fovea train` reads: COCO boxes, pictures with masks, a folder per class.

Of a task's annotations one counts: the ground truth, else the newest; skipped ones never do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.api.coco import CocoDataset
from fovea.errors import Malformed
from fovea_labelstudio.brush_codec import decode_brush
from fovea_labelstudio.label_config import ControlTag, folder_name
from fovea_recipes.training.data.coco_masks import fill_outline
from shared.vision.decode import decode
from shared.vision.limits import DecodeBounds

Region = Mapping[str, Any]


def pick_annotation(task: Mapping[str, Any]) -> list[Region] | None:
    """The regions that count of a task; None where nobody labelled it."""
    done = [each for each in task.get("annotations") or () if not each.get("was_cancelled")]
    if not done:
        return None
    best = max(done, key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at", ""))))
    return [region for region in best.get("result") or () if isinstance(region, dict)]


class TrainingSet:
    """An empty folder that is filled picture by picture with the regions of one tag."""

    def __init__(self, folder: Path, control: ControlTag, max_pixels: int) -> None:
        self._folder, self._control, self._max_pixels = folder, control, max_pixels
        self._coco = CocoDataset(info={"description": "Exported from Label Studio"})
        for name in control.labels:
            self._coco.category_id(name)
        self.pictures = 0

    def add(self, task_id: int, picture: bytes, regions: Sequence[Region]) -> bool:
        """Add a labelled picture; False where its labels say nothing that can be trained on.

        Raises:
            UnsupportedMedia, TooLarge: The picture is of no format that models read, or has too many pixels.
            Malformed: It is broken, a region can't be read, or a brush does not fit its picture.
        """
        upright = Image.fromarray(decode(picture, DecodeBounds(pixels=self._max_pixels)).pixels)
        own = [each for each in regions if each.get("from_name") == self._control.name]
        writers = {"rectanglelabels": self._write_boxes, "choices": self._write_choice}
        write = writers.get(self._control.kind, self._write_mask)
        try:
            if not write(f"task-{task_id:06d}", upright, own):
                return False
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise Malformed("A region of it can't be read.") from error
        self.pictures += 1
        return True

    def close(self) -> None:
        """Write what belongs to all pictures together."""
        if self._control.kind == "rectanglelabels":
            (self._folder / "annotations.json").write_text(self._coco.to_json(), "utf8")

    def _write_boxes(self, stem: str, picture: Image.Image, regions: Sequence[Region]) -> bool:
        name = self._save(picture, "images", stem)
        image = self._coco.add_image(name, picture.width, picture.height)
        for region in regions:
            value = region.get("value") or {}
            for label in value.get("rectanglelabels") or ():
                self._coco.add_object(image, str(label), _box(value, picture.width, picture.height))
        return True

    def _write_mask(self, stem: str, picture: Image.Image, regions: Sequence[Region]) -> bool:
        mask = np.zeros((picture.height, picture.width), np.uint8)
        for region in regions:
            value = region.get("value") or {}
            given = value.get(self._control.kind)
            if not given or set(self._control.labels[:1]) <= set(given):  # the label that a mask's prediction has
                _draw(mask, value)
        self._save(picture, "images", stem)
        self._save(Image.fromarray(mask), "masks", stem)
        return True

    def _write_choice(self, stem: str, picture: Image.Image, regions: Sequence[Region]) -> bool:
        chosen = [str(label) for region in regions for label in (region.get("value") or {}).get("choices") or ()]
        if not chosen or chosen[0] not in self._control.labels:
            return False
        self._save(picture, folder_name(chosen[0]), stem)
        return True

    def _save(self, picture: Image.Image, room: str, stem: str) -> str:
        (self._folder / room).mkdir(parents=True, exist_ok=True)
        file = self._folder / room / f"{stem}.png"
        picture.save(file)
        return file.name


def _box(value: Region, width: int, height: int) -> tuple[float, float, float, float]:
    """Corners x1, y1, x2, y2 in pixels; of a turned rectangle the upright one around it."""
    x, y, w, h = (float(value.get(name) or 0) / 100 for name in ("x", "y", "width", "height"))
    turn = np.deg2rad(float(value.get("rotation") or 0))
    across = np.array([(0, 0), (w * width, 0), (w * width, h * height), (0, h * height)])
    turned = across @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    corners = _finite(turned + np.array([x * width, y * height])).clip(0, (width, height))
    (x1, y1), (x2, y2) = corners.min(0), corners.max(0)
    return float(x1), float(y1), float(x2), float(y2)


def _draw(mask: NDArray[np.uint8], value: Region) -> None:
    height, width = mask.shape
    if value.get("points"):
        shares = _finite(np.asarray(value["points"], float).reshape(-1, 2) / 100).clip(-1, 2)
        mask[fill_outline(shares * (width, height) - 0.5, height, width)] = 255
    elif value.get("rle"):
        mask[decode_brush(value["rle"], height, width)] = 255


def _finite(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The places themselves; raises ValueError where one is not a number."""
    if not np.isfinite(places).all():
        raise ValueError("a place is not a number")
    return places
