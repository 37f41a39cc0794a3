"""Official checkpoints of PATNet are found by their shapes, and those of another network are refused."""

import pytest
import torch

from services.detection.models.fasternet import FasterNet
from services.detection.models.patnet import PATNet
from shared.errors import InvalidOption
from shared.registry.weights import read_weights
from shared.training.checkpoint_import import import_weights

CHECKPOINTS = {
    "t1-gated": (lambda: PATNet("t1"), {"size": "t1", "spatial": True, "heads": 4}),
    "t0-six-heads": (lambda: PATNet("t0", heads=6), {"size": "t0", "spatial": False, "heads": 6}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_official_checkpoint_is_stored_with_the_layout_that_fits(tmp_path, name):
    make, config = CHECKPOINTS[name]
    torch.manual_seed(2)
    state = make().state_dict()
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "official.pth")
    imported = import_weights("patnet", tmp_path / "official.pth", tmp_path / "weights")
    assert imported.manifest.network.config == config
    assert (imported.missing, imported.unexpected) == ([], [])
    arrays = read_weights(tmp_path / "weights" / "patnet.safetensors").arrays
    assert all(torch.equal(torch.from_numpy(arrays[key]).view(value.shape), value) for key, value in state.items())


def test_a_checkpoint_of_another_network_is_refused_with_its_keys(tmp_path):
    torch.save(FasterNet("t0", classes=10).state_dict(), tmp_path / "official.pth")
    with pytest.raises(InvalidOption, match=r"head\.weight is"):
        import_weights("fasternet", tmp_path / "official.pth", tmp_path / "weights")
    with pytest.raises(InvalidOption, match="lacks"):
        import_weights("hieraedgenet", tmp_path / "official.pth", tmp_path / "weights")
