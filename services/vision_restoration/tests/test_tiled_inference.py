"""The demo weights in tiles: with the context of their variant, tiles equal the whole; on other grids they don't."""

import numpy as np
import pytest

from fovea.api.restore import RestoreIn
from services.vision_restoration.models.rrformer import RRFormerRestorer
from services.vision_restoration.tiled_inference import CONTEXT, plan_tiles, restore_by_tiles
from services.vision_restoration.weights_loading import build_artifacts, load_weights
from shared.engines.torch import TorchEngine
from shared.registry import CallContext


@pytest.fixture(scope="module", params=CONTEXT)
def engine(request, tmp_path_factory):
    made = build_artifacts(load_weights(RRFormerRestorer.folder, tmp_path_factory.mktemp("none")), request.param, None)
    return request.param, TorchEngine(made.network(), made.inputs, made.outputs)


def picture(height: int = 64, width: int = 448) -> np.ndarray:
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 65_536, (-(-height // 12), -(-width // 12), 3)).repeat(12, axis=0).repeat(12, axis=1)
    return coarse[:height, :width].astype(np.uint16)


def test_tiles_of_the_demo_weights_equal_the_whole(engine):
    variant, network = engine
    pixels = picture()
    whole, pieces = (
        restore_by_tiles(
            network,
            pixels,
            plan_tiles(64, 448, variant, RestoreIn(image=b"", tile_core=core), 3600),
            CallContext(),
            _quiet,
        )
        for core in (512, 64)
    )
    # In 16 bits a step is 1.5e-5 of white: the spec allows 1e-4.
    assert np.abs(whole.astype(int) - pieces).max() <= 7


def _quiet(done: int) -> None:
    """Tell nobody."""
