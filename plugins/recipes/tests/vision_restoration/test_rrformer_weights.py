"""The committed restorer: it takes reflections off photographs, and leaves those without one alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import services
from fovea_recipes.vision_restoration.evaluation import ReflectionPairs, gain_pairs, restore_pairs, score_pairs
from fovea_recipes.vision_restoration.glass import behind_glass
from services.vision_restoration.models.rrformer import RRFormerRestorer
from shared.export.artifacts import ExportedForms
from shared.registry.weights import read_weights

SERVICES = Path(next(iter(services.__path__)))
PHOTOGRAPHS = (
    "vision_restoration/models/example.jpg",
    "detection/models/pavement.jpg",
    "detection/models/clothes.jpg",
    "detection/models/smear.jpg",
)


@pytest.fixture(scope="module")
def weights():
    return read_weights(RRFormerRestorer.folder / "rrformer-restorer.safetensors")


@pytest.fixture(scope="module")
def pairs():
    """Each photograph behind a pane before each other one, and as it is."""
    pages = [Image.open(SERVICES / name).convert("RGB").resize((96, 96)) for name in PHOTOGRAPHS]
    scenes = [np.asarray(page, np.float32) / 255 for page in pages]
    mixed, clean, plain = [], [], []
    for place, scene in enumerate(scenes):
        for other, reflection in enumerate(scenes):
            seen, behind = behind_glass(scene, reflection, np.random.default_rng(10 * place + other))
            plain.append(place == other)
            clean.append((behind * 255).astype(np.uint8))
            mixed.append(clean[-1] if plain[-1] else (seen * 255).astype(np.uint8))
    return ReflectionPairs(np.stack(mixed), np.stack(clean), np.array(plain))


def test_photographs_behind_glass_gain_and_clean_ones_stay(weights, pairs):
    restored = restore_pairs(ExportedForms(weights, Path(), (), (), "measured").network(), pairs.mixed)
    assert gain_pairs(restored, pairs).min() > 0.3
    assert score_pairs(restored, pairs)["psnr_clean"] > 35
