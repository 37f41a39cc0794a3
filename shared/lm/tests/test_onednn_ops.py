"""Matrices in oneDNN's layout: what they compute is what the decoder computes, a row hardly hangs on its neighbours."""

import pytest
import torch

from shared.lm.builders import gpt2, llama
from shared.lm.onednn_ops import PackedOps, is_packable, pack_ops
from shared.lm.ops import TORCH
from shared.lm.taps import Scale, trace

SIZES = {"vocab": 50, "width": 48, "layers": 3, "heads": 4, "hidden": 80, "positions": 256}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
EXACT, LAST_BIT = {"atol": 0.0, "rtol": 0.0}, {"atol": 1e-5, "rtol": 2**-7}
TILED = torch.cpu._is_amx_tile_supported()


def small(dtype=torch.float32):
    torch.manual_seed(0)
    return llama(**SIZES, kv_heads=2).to(dtype).requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 7, 64, 65, 200])
def test_a_packed_decoder_has_the_logits_of_the_plain_one(dtype, rows):
    model, ids = small(dtype), torch.randint(50, (1, rows))
    ops = pack_ops(model)
    assert isinstance(ops, PackedOps)
    torch.testing.assert_close(model(ids, ops=ops), model(ids), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(576, 192), (576, 1536), (1536, 576), (64, 96)])
def test_a_row_does_not_depend_on_how_many_others_there_are(dtype, shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(*shape, bias=shape[0] == 64).to(dtype).requires_grad_(requires_grad=False)
    ops, x = PackedOps([layer]), torch.randn(1, 600, shape[0]).to(dtype)
    (whole,) = ops.products(x, [layer])
    torch.testing.assert_close(whole, layer(x), atol=TOLERANCE[dtype], rtol=0)
    for size in (64, 77, 128, 448):
        (part,) = ops.products(x[:, :size], [layer])
        torch.testing.assert_close(part, whole[:, :size], **(LAST_BIT if TILED and dtype == torch.bfloat16 else EXACT))
        assert (part != whole[:, :size]).float().mean() < 1e-3, "roundings, no other sums"


def test_what_onednn_does_not_serve_is_left_to_torch():
    assert pack_ops(small(torch.float64)) is TORCH
    assert not is_packable(small(torch.float64))
    assert is_packable(small())
    model = gpt2(vocab=50, width=48, layers=2, heads=4, hidden=80, positions=64).eval()
    assert pack_ops(model) is TORCH, "its products are not behind the seam"


def test_a_reading_that_keeps_no_logits_fills_the_cache_and_is_tapped_as_any_other():
    model, ids = small(), torch.randint(50, (1, 30))
    caches = [model.new_cache() for _ in range(2)]
    assert model(ids, cache=caches[0], keep=0).shape == (1, 0, 50)
    model(ids, cache=caches[1])
    for layer in range(3):
        for one, other in zip(
            *(cache.write(layer, *[torch.zeros(1, 0, 2, 12)] * 2, 30) for cache in caches), strict=True
        ):
            assert torch.equal(one, other)
    model, ids = small(), torch.randint(50, (1, 9))
    found = trace(model, ids, capture=["mlp_out.2"], edits=[Scale("z.2", 0.0)], keep=0)
    assert found["mlp_out.2"].shape == (1, 9, 48)
