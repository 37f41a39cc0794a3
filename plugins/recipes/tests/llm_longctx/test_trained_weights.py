"""Committed weights give the headline numbers of their manifests again, on the same answers and the same text."""

import pytest
import torch

from fovea_recipes.llm_longctx.byte_models import RoutingBytesRecipe
from fovea_recipes.llm_longctx.landmark_recall import LandmarkRecallRecipe
from fovea_recipes.llm_longctx.titans_recall import TitansAttentionRecipe
from fovea_recipes.training.byte_recipe import bits_per_byte
from shared.registry import network
from shared.registry.discovery import shipped_weights
from shared.registry.weights import read_weights

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
    measured = TitansAttentionRecipe()._recall(net, 128 - 12, TEST)
    assert measured >= 0.99  # a twin without a memory guesses: 0.06
    assert abs(measured - manifest.metrics["recall_128"]) < CLOSE_CALL


def test_landmark_recalls_in_and_beyond_its_trained_length_as_its_manifest_says():
    net, manifest = trained("fovea-landmark-recall")
    made = LandmarkRecallRecipe()
    assert abs(made._whole(net, 52, TEST) - manifest.metrics["recall_64"]) < CLOSE_CALL
    assert abs(made._streamed(net, 500, 2)[0] - manifest.metrics["recall_512_k2"]) < CLOSE_CALL


def test_routing_streams_with_the_bits_of_its_manifest():
    net, manifest = trained("fovea-routing-bytes")
    windows = RoutingBytesRecipe().test_windows()[:8]
    assert abs(bits_per_byte(net, windows) - manifest.metrics["bits_teacher_forced_same"]) < 1e-3
    stream = net.session(2).feed(windows[:2, :96])
    with torch.no_grad():
        assert (stream - net(windows[:2, :96])).abs().max() < 1e-3
