"""The photographs that come with scikit-image and scikit-learn: real sources, and nothing is fetched.

Knows their files and which split each belongs to; reads them with Pillow and imports neither library.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.errors import NotReady

Split = Literal["train", "valid", "test"]

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}

PHOTOGRAPHS: Mapping[Split, tuple[str, ...]] = {
    "train": (
        "skimage/astronaut.png",
        "skimage/coffee.png",
        "skimage/rocket.jpg",
        "skimage/camera.png",
        "skimage/brick.png",
        "skimage/gravel.png",
        "skimage/hubble_deep_field.jpg",
        "skimage/coins.png",
        "skimage/retina.jpg",
        "sklearn/china.jpg",
    ),
    "valid": ("skimage/motorcycle_left.png", "skimage/moon.png"),
    "test": ("skimage/chelsea.png", "skimage/ihc.png", "skimage/grass.png", "sklearn/flower.jpg"),
}
"""Library and file of each, by split: a photograph is in one split only."""


def photographs(split: Split) -> list[NDArray[np.uint8]]:
    """The photographs of a split, (h, w, 3) each; NotReady if a library that holds them is not installed."""
    return [np.asarray(Image.open(_path(name)).convert("RGB")) for name in PHOTOGRAPHS[split]]


def _path(name: str) -> Path:
    library, _, file = name.partition("/")
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        detail = f"The photograph {file} comes with the library {library}, which is not installed."
        raise NotReady(detail, hint="pip install scikit-image scikit-learn")
    return Path(spec.origin).parent / _FOLDERS[library] / file
