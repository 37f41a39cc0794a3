"""Recipes of language models, and the weights that they made."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea_recipes.llm_longctx import recall
from fovea_recipes.llm_longctx.byte_models import HybridBytesRecipe, RoutingBytesRecipe
from fovea_recipes.llm_longctx.landmark_recall import LandmarkRecallRecipe, with_landmarks
from fovea_recipes.llm_longctx.titans_recall import TitansAttentionRecipe
from fovea_recipes.training.byte_recipe import bits_per_byte
from fovea_recipes.training.recipe import Schedule, recipe_named
from fovea_recipes.training.text_corpus import corpus, library_text
from fovea_recipes.training.trainer import fit
from shared.registry import network
from shared.registry.discovery import shipped_weights
from shared.registry.weights import read_weights
from tests.device.pretend_cuda import PretendCuda
from tests.harness.hypothesis_profiles import in_depth

SHORT_BYTES = Schedule(steps=4, batch=4, rate=3e-3, floor=3e-4, validate_every=2)
SMALL = {"width": 32, "layers": 2, "heads": 4, "context": 64}


def test_splits_share_no_file_and_windows_follow_the_seed():
    parts = {split: corpus(split) for split in ("train", "valid", "test")}
    sizes = {split: len(part.data) for split, part in parts.items()}
    assert sum(sizes.values()) + 2 <= sum(path.stat().st_size for path in library_text()) + len(library_text())
    assert 0.75 < sizes["train"] / sum(sizes.values()) < 0.97
    assert len({part.digest for part in parts.values()}) == 3
    assert min(sizes.values()) > 100_000
    text = corpus("valid")
    assert torch.equal(text.windows(5, 33), text.windows(5, 33))
    first, second = (text.draw(np.random.default_rng(3), 4, 20) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (4, 20)
    assert 0 <= int(first.min()) <= int(first.max()) < 256


@pytest.mark.parametrize("kind", [RoutingBytesRecipe, LandmarkRecallRecipe])
def test_recipes_train_on_a_gpu(kind, tmp_path):
    small = {**SMALL, "first": 1, "window": 16, "local_window": 16} if kind is RoutingBytesRecipe else {}
    with PretendCuda().active():
        fit(kind(schedule=SHORT_BYTES, **small), tmp_path, device="cuda")


@pytest.mark.parametrize("routing", [2, 0])
def test_routing_recipe_trains_and_its_stream_says_what_the_whole_says(tmp_path, routing):
    made = RoutingBytesRecipe(schedule=SHORT_BYTES, routing=routing, first=1, window=16, local_window=16, **SMALL)
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
    made = HybridBytesRecipe(schedule=SHORT_BYTES, mixer=mixer, **SMALL)
    fitted = fit(made, tmp_path)
    found = made.measure(fitted.network)
    assert found["bits_per_byte"] < 9
    assert found["bits_skip"] != found["bits_per_byte"]
    own = {"nonapproximate": 4 * (32 + 2 * 4), "mlp": 0, "fixed_qk": 4 * (3 * 64 * 32)}[mixer]
    assert found["state_bytes"] == own + 4 * 2 * 64 * 32
    if mixer == "fixed_qk":
        assert bytes(fitted.network.text.tolist()) == bytes(corpus("train").data[:64])


SHORT = Schedule(steps=6, batch=8, rate=3e-3, floor=3e-4, validate_every=3)


@given(seed=st.integers(0, 2**20), body=st.sampled_from([8, 12, 52, 100]))
def test_each_question_has_its_answer_in_the_body(seed, body):
    drawn = recall.draw(np.random.default_rng(seed), 5, body)
    assert drawn.ids.shape == (5, body + 12)
    for row, written in zip(drawn.ids.tolist(), drawn.written.tolist(), strict=True):
        for answer, at in zip(drawn.answers.tolist(), written, strict=True):
            assert (row[answer - 2], at % 2, row[at : at + 2]) == (recall.MARK, 0, row[answer - 1 : answer + 1])
        keys = [row[a - 1] for a in drawn.answers.tolist()]
        assert len(set(keys)) == 4
        assert all(recall.FILLERS <= key < recall.FILLERS + recall.KEYS for key in keys)
        assert len([token for token in row[:body] if token < recall.FILLERS]) == body - 8


@pytest.mark.parametrize("form", ["landmark", "plain"])
def test_recipe_is_found_and_trains(tmp_path, form):
    made = recipe_named("landmark-recall")(schedule=SHORT, form=form, answers=16)
    network = fit(made, tmp_path).network
    torch.manual_seed(0)
    with torch.no_grad():
        batch = next(made.batches(0, np.random.default_rng(0)))
        assert made.loss(network, batch) < made.loss(made.network(), batch) - 0.1
        found = made._whole(network, 20, 1)
    assert found.shape == (4,)
    assert ((found >= 0) & (found <= 1)).all()


def test_streams_are_measured_as_they_are_served_and_answers_told_by_the_token_before_their_landmark():
    made = LandmarkRecallRecipe(answers=16)
    torch.manual_seed(0)
    net = made.network().eval()
    whole = made._whole(net, 52, 2 * 10**9)
    streamed, cited = made._streamed(net, 52, 99)
    assert (streamed == whole).all()  # nothing is left out, so nothing differs
    assert cited == 1.0
    assert made._streamed(net, 116, 1)[1] < 1.0
    drawn = recall.draw(np.random.default_rng(3), 2, 52)
    ids = with_landmarks(drawn.ids, 8)
    with torch.no_grad():
        found = made._answers(net, drawn.ids, drawn.answers)
        logits = net(ids)
    assert torch.equal(found, logits[:, (ids[0] != recall.LANDMARK).nonzero().flatten()[drawn.answers - 1]])


@pytest.mark.parametrize("layout", in_depth(["mac", "mag", "mal", "lmm", "attention"], ["mag", "attention"]))
def test_titans_recipes_are_found_train_and_measure(tmp_path, layout):
    kind = recipe_named(f"titans-{layout}-recall")
    longer = SHORT.model_copy(update={"steps": 20, "validate_every": 10})
    made = kind(schedule=longer, width=16, layers=1, heads=2, segment=8, refresh=4, longest=20, answers=16)
    fitted = fit(made, tmp_path)
    torch.manual_seed(made.seed)
    start = made.network()
    fresh = start.state_dict()
    still = [key for key, value in fitted.network.state_dict().items() if torch.equal(value, fresh[key])]
    assert still == []  # the gradient reaches everything, the memory's gates included
    with torch.no_grad():
        batch = next(made.batches(0, np.random.default_rng(0)))
        assert made.loss(fitted.network, batch) < made.loss(start, batch)
    found = made.measure(fitted.network)
    assert all(low <= found[name] <= high for name, (low, high) in made.intervals().items())
    assert made.intervals().keys() == found.keys()


TEST = 2 * 10**9
"""The seed that recipes measure with."""


def trained(name):
    found = read_weights(shipped_weights()[name])
    net = network(found.manifest.network.name, **found.manifest.network.config)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in found.arrays.items()})
    return net.eval(), found.manifest


CLOSE_CALL = 1.5 / 256
"""One of the 256 answers may fall to the other side under another processor's rounding."""


@pytest.mark.parametrize("layout", ["mac", "mag", "mal", "lmm"])
def test_titans_recalls_across_segments_as_its_manifest_says(layout):
    net, manifest = trained(f"fovea-titans-{layout}")
    measured = TitansAttentionRecipe()._recall(net, 128 - 12, TEST).mean()
    assert measured >= 0.99  # a twin without a memory guesses: 0.06
    assert abs(measured - manifest.metrics["recall_128"]) < CLOSE_CALL


def test_landmark_recalls_in_and_beyond_its_trained_length_as_its_manifest_says():
    net, manifest = trained("fovea-landmark-recall")
    made, few = LandmarkRecallRecipe(), LandmarkRecallRecipe(answers=64)
    assert abs(made._whole(net, 52, TEST).mean() - manifest.metrics["recall_64"]) < CLOSE_CALL
    assert abs(few._streamed(net, 500, 2)[0].mean() - manifest.metrics["recall_512_k2"]) < CLOSE_CALL


def test_routing_streams_with_the_bits_of_its_manifest():
    net, manifest = trained("fovea-routing-bytes")
    recipe = RoutingBytesRecipe()
    windows = recipe.test_windows()[:8]
    # The library of another version of Python is another text: it is read about as well.
    most = 1e-3 if recipe.split("test").digest == manifest.data["test_digest"] else 1
    assert abs(bits_per_byte(net, windows) - manifest.metrics["bits_teacher_forced_same"]) < most
    stream = net.session(2).feed(windows[:2, :96])
    with torch.no_grad():
        assert (stream - net(windows[:2, :96])).abs().max() < 1e-3
