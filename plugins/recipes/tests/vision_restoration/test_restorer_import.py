"""Restorers out of others' checkpoints and out of photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import services
from fovea.api.restore import RestoreIn
from fovea_recipes.training import checkpoint_import
from fovea_recipes.training.publish import publish
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit
from fovea_recipes.vision_restoration.evaluation import ReflectionPairs, gain_pairs, restore_pairs, score_pairs
from fovea_recipes.vision_restoration.glass import behind_glass
from fovea_recipes.vision_restoration.rrformer_photographs import RRFormerPhotographs
from plugins.recipes.tests.training.test_data_sets import noise
from services.vision_restoration.models import rrformer_network as networks
from services.vision_restoration.models import vgg as towers
from services.vision_restoration.models.rrformer import RRFormerRestorer
from shared.export.artifacts import ExportedForms
from shared.registry import CallContext
from shared.registry.weights import read_weights
from shared.vision.draw import encode

SMALL = {"levels": (4, 4, 8, 8, 8), "features": 16, "body": 16, "groups": 1, "blocks": 2, "heads": 2}


@pytest.fixture(autouse=True)
def _small_official_layout(monkeypatch):
    """The official layout has 33 million numbers; the rules are the same for a small one."""
    built = {"rrformer": networks.RRFormer(**SMALL), "vgg19-features": towers.VggFeatures(SMALL["levels"])}
    monkeypatch.setattr(checkpoint_import, "network", built.get)
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


def test_a_training_checkpoint_is_read_without_its_classifier_in_torchvisions_names_too(net, tmp_path):
    file = saved(tmp_path / "errnet_latest.pt", training_dict(net))
    found = checkpoint_import.import_weights("rrformer", file, tmp_path / "weights")
    assert found.notes == {"missing": [], "unexpected": []}
    stored = read_weights(tmp_path / "weights/rrformer.safetensors").arrays
    assert all(np.array_equal(stored[key], value.numpy()) for key, value in net.state_dict().items())
    ours = towers.VggFeatures(SMALL["levels"]).state_dict()
    state = {key.replace("vgg_pretrained_features.", "features."): value for key, value in ours.items()}
    file = saved(tmp_path / "vgg19.pth", state | {"classifier.0.weight": torch.zeros(4, 4)})
    found = checkpoint_import.import_weights("vgg19-features", file, tmp_path / "weights")
    assert found.notes == {"missing": [], "unexpected": ["classifier.0.weight"]}


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


def photographs(folder: Path) -> Path:
    for seed in range(14):
        noise(folder / ("indoors" if seed % 2 else "outdoors") / f"{seed}.png", seed, (120, 110))
    return folder


def test_a_reflection_only_adds_light_and_none_leaves_the_scene_alone():
    scene = np.random.default_rng(0).random((48, 48, 3), np.float32) * 0.8
    apart = []
    for seed in range(20):
        mixed, clean = behind_glass(scene, np.zeros_like(scene), np.random.default_rng(seed))
        assert (clean <= scene + 1e-5).all(), "glass adds no light"
        apart.append(float((mixed - clean).mean()))
    assert min(apart) < 0.01, "without a veil nothing is added"
    assert min(apart) > -0.01
    rng = np.random.default_rng(1)
    scene, other = (rng.random((48, 48, 3), np.float32) for _ in range(2))
    added = [np.subtract(*behind_glass(scene, other, np.random.default_rng(seed))).mean() for seed in range(20)]
    assert min(added) > -0.005
    assert max(added) > 0.05


def test_a_folder_of_photographs_becomes_a_restorer(tmp_path):
    made = RRFormerPhotographs(
        data=photographs(tmp_path / "data"), size=64, test=6, share=0.3,
        schedule=Schedule(steps=2, batch=2, rate=1e-4, validate_every=2),
    )  # fmt: skip
    manifest = publish(made, fit(made, tmp_path / "run"), tmp_path / "out")
    assert {"psnr", "psnr_identity", "psnr_gain"} <= manifest.metrics.keys()
    assert manifest.bytes < 4_000_000
    made._out.clear()
    assert np.isfinite(made.score(made.network())), "held-out photographs choose nothing"
    used = [{photo.tobytes() for pool in pools for photo in pool} for pools in (made._train, made._choose)]
    assert [*map(len, used), len(used[0] & used[1])] == [8, 1, 0]


SERVICES = Path(next(iter(services.__path__)))
PHOTOGRAPHS = (
    "vision_restoration/models/example.jpg", "detection/models/pavement.jpg", "detection/models/clothes.jpg",
    "detection/models/smear.jpg",
)  # fmt: skip


def photograph_pairs():
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


def test_photographs_behind_glass_gain_and_clean_ones_stay():
    weights, pairs = read_weights(RRFormerRestorer.folder / "rrformer-restorer.safetensors"), photograph_pairs()
    restored = restore_pairs(ExportedForms(weights, Path(), (), (), "measured").network(), pairs.mixed)
    assert gain_pairs(restored, pairs).min() > 0.3
    assert score_pairs(restored, pairs)["psnr_clean"] > 35
