"""Official checkpoints: the dict that training wrote, and the VGG tower apart."""

import numpy as np
import pytest
import torch

from fovea.api.restore import RestoreIn
from fovea_recipes.training import checkpoint_import
from services.vision_restoration.models import rrformer_network as networks
from services.vision_restoration.models import vgg as towers
from shared.registry import CallContext
from shared.registry.weights import read_weights
from shared.vision.draw import encode

SMALL = {"levels": (4, 4, 8, 8, 8), "features": 16, "body": 16, "groups": 1, "blocks": 2, "heads": 2}


@pytest.fixture(autouse=True)
def _small_official_layout(monkeypatch):
    """The official layout has 33 million numbers; the rules are the same for a small one."""
    built = {
        "rrformer": lambda: networks.RRFormer(**SMALL),
        "vgg19-features": lambda: towers.VggFeatures(SMALL["levels"]),
    }
    monkeypatch.setattr(checkpoint_import, "network", lambda name: built[name]())
    monkeypatch.setattr(checkpoint_import, "layouts", lambda _: ({},))


@pytest.fixture
def net():
    torch.manual_seed(3)
    return networks.RRFormer(**SMALL)


def saved(path, thing):
    torch.save(thing, path)
    return path


def training_dict(net):
    optimizer = torch.optim.Adam(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    return {"icnn": net.state_dict(), "opt_g": optimizer.state_dict(), "epoch": 60, "iterations": 123_456}


def test_a_training_checkpoint_is_read_from_its_icnn(net, tmp_path):
    file = saved(tmp_path / "errnet_latest.pt", training_dict(net))
    found = checkpoint_import.import_weights("rrformer", file, tmp_path / "weights")
    assert (found.missing, found.unexpected) == ([], [])
    stored = read_weights(tmp_path / "weights/rrformer.safetensors").arrays
    assert all(np.array_equal(stored[key], value.numpy()) for key, value in net.state_dict().items())


def test_torchvisions_names_are_understood_and_its_classifier_left_out(tmp_path):
    tower = towers.VggFeatures(SMALL["levels"])
    state = {
        key.replace("vgg_pretrained_features.", "features."): value for key, value in tower.state_dict().items()
    } | {"classifier.0.weight": torch.zeros(4, 4)}
    found = checkpoint_import.import_weights(
        "vgg19-features", saved(tmp_path / "vgg19.pth", state), tmp_path / "weights"
    )
    assert (found.missing, found.unexpected) == ([], ["classifier.0.weight"])


def test_imported_weights_are_served_as_released(net, load_from, stored, tmp_path, monkeypatch):
    home = tmp_path / "weights"
    checkpoint_import.import_weights("rrformer", saved(tmp_path / "a.pt", training_dict(net)), home)
    tower = towers.VggFeatures(SMALL["levels"])
    checkpoint_import.import_weights("vgg19-features", saved(tmp_path / "b.pth", tower.state_dict()), home)
    for name, config in (("rrformer", SMALL), ("vgg19-features", {"widths": SMALL["levels"]})):
        manifest = read_weights(home / f"{name}.safetensors").manifest
        changed = manifest.model_copy(update={"network": manifest.network.model_copy(update={"config": config})})
        (home / f"{name}.json").write_text(changed.model_dump_json())
    served = load_from(stored, tmp_path, engine="torch")
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    (answer,) = served.predict([RestoreIn(image=encode(picture))], CallContext())
    assert (served.card.variant, answer.variant) == ("released", "released")
    with torch.no_grad():
        image = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        wanted = net.eval()(image, tower(image))
    (found,) = served.engine.run({"image": image.numpy()}).values()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    served.close()
