"""EfficientNet-Lite0 has the published layout."""

import torch

from shared.vision.backbones.efficientnet_lite import EfficientNetLite0


@torch.no_grad()
def test_levels_have_the_published_sizes():
    levels = EfficientNetLite0().eval()(torch.zeros(1, 3, 97, 130))
    assert [tuple(level.shape[1:]) for level in levels] == [(24, 25, 33), (40, 13, 17), (112, 7, 9), (320, 4, 5)]
    assert sum(p.numel() for p in EfficientNetLite0(1000).parameters()) == 4_652_008
