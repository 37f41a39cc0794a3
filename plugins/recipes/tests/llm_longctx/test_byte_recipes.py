"""Byte models learn from Python's own text, whose splits never share a file; what is measured is what is served."""

import numpy as np
import pytest
import torch

from fovea_recipes.llm_longctx.byte_models import HybridBytesRecipe, RoutingBytesRecipe
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.text_corpus import corpus, library_text
from fovea_recipes.training.trainer import fit

SHORT = Schedule(steps=4, batch=4, rate=3e-3, floor=3e-4, validate_every=2)
SMALL = {"width": 32, "layers": 2, "heads": 4, "context": 64}


def test_splits_share_no_file_and_are_about_ninety_five_and_five():
    parts = {split: corpus(split) for split in ("train", "valid", "test")}
    sizes = {split: len(part.data) for split, part in parts.items()}
    assert sum(sizes.values()) + 2 <= sum(path.stat().st_size for path in library_text()) + len(library_text())
    assert 0.75 < sizes["train"] / sum(sizes.values()) < 0.97
    assert len({part.digest for part in parts.values()}) == 3
    assert min(sizes.values()) > 100_000


def test_windows_are_the_same_every_time_and_draws_follow_the_seed():
    text = corpus("valid")
    assert torch.equal(text.windows(5, 33), text.windows(5, 33))
    first, second = (text.draw(np.random.default_rng(3), 4, 20) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (4, 20)
    assert 0 <= int(first.min()) <= int(first.max()) < 256


@pytest.mark.parametrize("routing", [2, 0])
def test_routing_recipe_trains_and_its_stream_says_what_the_whole_says(tmp_path, routing):
    made = RoutingBytesRecipe(schedule=SHORT, routing=routing, first=1, window=16, local_window=16, **SMALL)
    fitted = fit(made, tmp_path)
    before = made.network().blocks[1][1].means if routing else None
    found = made.measure(fitted.network)
    assert abs(found["bits_incremental"] - found["bits_teacher_forced_same"]) < 1e-4
    assert found["bits_teacher_forced"] < 9
    if routing:
        assert not torch.equal(fitted.network.blocks[1][1].means, before)
        assert 0 <= found["occupancy_min"] <= found["occupancy_max"] <= 1


def test_an_empty_cluster_begins_anew_in_the_fullest_and_the_twin_is_of_one_size():
    made = RoutingBytesRecipe(first=0, window=32, local_window=32, **SMALL)
    net = made.network().train()
    attention = net.blocks[0][1]
    attention.means[:, 1] = attention.means[:, 0]  # ties go to the first
    first, second = attention.means.unbind(1)
    length = first.norm(dim=-1)
    made.loss(net, {"ids": torch.randint(0, 256, (2, 65))})
    assert not torch.allclose(first, second, atol=0.1)
    assert torch.allclose(second.norm(dim=-1), length)
    sizes = [sum(p.numel() for p in RoutingBytesRecipe(routing=routing).network().parameters()) for routing in (2, 0)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.001


@pytest.mark.parametrize("mixer", ["nonapproximate", "fixed_qk", "mlp"])
def test_hybrid_recipe_trains_and_measures_its_state(tmp_path, mixer):
    made = HybridBytesRecipe(schedule=SHORT, mixer=mixer, **SMALL)
    fitted = fit(made, tmp_path)
    found = made.measure(fitted.network)
    assert found["bits_per_byte"] < 9
    assert found["bits_skip"] != found["bits_per_byte"]
    own = {"nonapproximate": 4 * (32 + 2 * 4), "mlp": 0, "fixed_qk": 4 * (3 * 64 * 32)}[mixer]
    assert found["state_bytes"] == own + 4 * 2 * 64 * 32
    if mixer == "fixed_qk":
        assert bytes(fitted.network.text.tolist()) == bytes(corpus("train").data[:64])
