"""Gemma 3: windows that slide in every path through the decoder, and facts in the forms that its files have had."""

import pytest
import torch

from fovea.errors import BadInput
from shared.lm.attention import eager, sdpa
from shared.lm.builders import gemma3
from shared.lm.config import from_official
from shared.lm.taps import trace

FACTS = {
    "model_type": "gemma3_text", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 7,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "sliding_window": 5, "query_pre_attn_scalar": 8, "rope_theta": 1e6,
    "rope_local_base_freq": 2e4,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = gemma3(
        vocab=32, width=16, layers=3, heads=4, kv_heads=2, hidden=24, positions=64, head_dim=8, window=5, every=3
    ).double()
    for parameter in made.parameters():
        parameter.data = 0.5 * torch.randn_like(parameter)
    return made.eval()


@pytest.mark.parametrize("T", [1, 4, 9])
def test_the_kernels_agree_on_windows(T):
    torch.manual_seed(0)
    q, (keys, values) = torch.randn(2, T, 4, 8), torch.randn(2, 2, 2, 9, 8)
    for window in (1, 3, 9, 20):
        torch.testing.assert_close(sdpa(q, keys, values, window=window), eager(q, keys, values, window=window))


def test_a_sliding_layer_forgets_what_lies_before_its_window(model):
    ids = torch.arange(20)[None] % 32
    other = ids.clone()
    other[0, 3] = 31
    shallow = [trace(model, one, capture=["z.0"], kernel="sdpa")["z.0"] for one in (ids, other)]
    moved = (shallow[0] - shallow[1]).abs().amax((0, 2, 3)).nonzero()[:, 0].tolist()
    assert moved == [3, 4, 5, 6, 7]


def test_older_files_say_the_pattern_by_a_number_and_the_local_base_by_a_name():
    config = from_official(FACTS)
    assert (config.windows, config.local_theta, config.rope_theta) == ((5, 5, 5, 5, 5, None, 5), 2e4, 1e6)
    assert from_official({"model_type": "gemma3", "text_config": FACTS}) == config


@pytest.mark.parametrize("wrong", [{"final_logit_softcapping": 30.0}, {"hidden_activation": "relu"}, {"head_dim": 7}])
def test_variants_without_a_form_are_refused(wrong):
    with pytest.raises(BadInput):
        from_official(FACTS | wrong)
