"""DHSA's boundary predictor: its form, its labels, and that it learns borders which its keys show."""

import pytest
import torch

from fovea_recipes.llm_longctx import dhsa_predictor as dhsa
from fovea_recipes.llm_longctx.dhsa_predictor import BoundaryPredictor, predict_boundaries


def text(seed, topics=6, channels=8):
    """Keys of stretches that each have a direction of their own, and ratios that are large between them."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(12, 24, (topics,), generator=draw).tolist()
    parts = (torch.randn(channels, generator=draw) + 0.2 * torch.randn(n, channels, generator=draw) for n in lengths)
    keys = torch.cat([*parts])
    ratios = torch.ones(len(keys), dtype=torch.float64)
    ratios[torch.tensor(lengths[:-1]).cumsum(0) - 1] = 5.0
    return keys, ratios


def test_modules_labels_and_loss_are_the_official_ones_and_a_gap_is_judged_by_the_tokens_around_it():
    shapes = {name: tuple(x.shape) for name, x in BoundaryPredictor(8).state_dict().items()}
    assert {name.rpartition(".")[0] for name in shapes} == {"enc.mha", "enc.mha.out_proj", "enc.norm", "mlp.0", "mlp.2"}
    assert (shapes["mlp.0.weight"], shapes["mlp.2.weight"]) == ((256, 4 * 8 + 1), (1, 256))
    torch.manual_seed(0)
    predictor, keys = BoundaryPredictor(8).eval(), torch.randn(40, 8)
    logits = predictor(keys)
    assert (logits[[*range(7), *range(-8, 0)]] == -100).all()
    for first, is_seen in ((25, False), (24, True)):
        changed = keys.clone()
        changed[first:] = 9.0
        assert torch.allclose(predictor(changed)[20], logits[20]) is not is_seen
    assert dhsa.targets(torch.tensor([0.0, 1.9, 2.0, 7.0])).tolist() == [0, 0, 1, 1]
    logits, labels = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    p = torch.sigmoid(logits)
    by_hand = (1.3 * (1 - p[0]) ** 2 * -p[0].log() + p[1] ** 2 * -(1 - p[1]).log()) / 2
    assert dhsa.focal_loss(logits, labels) == pytest.approx(float(by_hand), rel=1e-6)


def score(predictor, texts=10):
    found = []
    for seed in range(1000, 1000 + texts):
        keys, ratios = text(seed)
        inner = [i + 1 for i in (ratios > 2).nonzero()[:, 0].tolist() if 7 <= i < len(keys) - 8]
        borders = predict_boundaries(predictor, keys, theta=-50, limit=len(inner) + 1, instruction=0)
        found.append(dhsa.agreement(borders, [0, *inner, len(keys)]).f1)
    return sum(found) / texts


def test_it_learns_borders_that_its_keys_show():
    torch.manual_seed(0)
    losses, texts = [], (text(seed) for seed in range(150))
    predictor = dhsa.train(BoundaryPredictor(8), texts, rate=5e-3, on_step=lambda _step, x: losses.append(x))
    assert sum(losses[-20:]) < sum(losses[:20])
    assert score(predictor) > 0.5
    assert score(BoundaryPredictor(8).eval()) < 0.3


@pytest.mark.parametrize(("found", "wanted", "told"), [
    ([0, 5, 9, 20], [0, 5, 12, 20], (0.5, 0.5, 0.5, 1 / 3)), ([0, 20], [0, 20], (1, 1, 1, 1)),
    ([0, 20], [0, 7, 20], (0, 0, 0, 0)), ([0, 7, 20], [0, 20], (0, 1, 0, 0)),
])  # fmt: skip
def test_borders_are_compared_as_sets(found, wanted, told):
    score = dhsa.agreement(found, wanted)
    assert (score.precision, score.recall, score.f1, score.overlap) == pytest.approx(told)
