"""A decode step in one C++ call against the decoder run by torch: families, ragged batches, few bits."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.taps import PlacedEdit, RequestTaps, SequenceTaps, TokenRange
from services.llm_longctx.kernels import PackedMatrix, backends, pack
from services.llm_longctx.kernels.decode_step import HEAD
from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.methods import method
from services.llm_longctx.tests.conftest import torch_threads
from services.llm_longctx.tests.tiny_models import random_decoder
from shared.lm.builders import gemma3, gpt2, llama, qwen2
from shared.lm.interventions import Add
from shared.lm.quantization import quantize

pytestmark = pytest.mark.skipif("cpu_ext" not in backends(), reason="the C++ kernels are not built")

SMALL = {"vocab": 61, "width": 40, "layers": 3, "heads": 6, "kv_heads": 2, "hidden": 56, "positions": 600}
IDS = [(7 * i + i * i) % 61 for i in range(400)]
ROLES = {"schema": "head-plan/1", "roles": [[1, 0]] * 3, "heads": [[2, 1]]}
FAMILIES = {
    "llama": lambda: llama(**SMALL, head_dim=16),
    "tied": lambda: llama(**SMALL, head_dim=24, tied=True),
    "biases": lambda: llama(**SMALL, head_dim=10, qkv_bias=True, out_bias=True),
    "qwen2": lambda: qwen2(**SMALL, head_dim=16),
    "qwen3": lambda: llama(**SMALL, head_dim=32, qk_norm=True),
    "gemma3": lambda: gemma3(**SMALL, head_dim=16, window=9, every=3, query_scale=20.0),
    "gpt2": lambda: gpt2(vocab=61, width=40, layers=3, heads=4, hidden=80, positions=600),
}


def build(family: str, dtype: torch.dtype = torch.float32):
    return random_decoder(FAMILIES[family]).to(dtype)


def round_matrices(net, bits: int) -> dict[str, PackedMatrix]:
    """The packed matrices; the net's own become what these hold."""
    packed = {}
    for key, weight in [*net.state_dict().items(), (HEAD, net.output_matrix)]:
        if weight.dim() == 2 and (".layers." in key or key == HEAD):
            rounded = quantize(weight.numpy(), bits)
            packed[key] = pack(rounded)
            weight.copy_(torch.from_numpy(rounded.dequantize()))
    return packed


def decode(net, how="dense", packed=None, backend="auto", prompts=(90, 33, 300), steps=4, threads=1):
    engine = Engine(net, how, ROLES, page=16, backend=backend, packed=packed or {})
    sequences = [engine.open() for _ in prompts]
    for s, n in zip(sequences, prompts, strict=True):
        s.prefill(IDS[:n])
    found = []
    with torch_threads(threads):
        for step in range(steps):
            logits = engine.batch({s: IDS[n + step] for s, n in zip(sequences, prompts, strict=True)})
            found.append(torch.stack([logits[s].float() for s in sequences]))
    for s in sequences:
        s.close()
    assert engine.kv_bytes() == 0
    return torch.stack(found)


METHODS = (
    method("duo", sink=4, recent=20), method("razor", window_min=24, window_div=8),
    method("recycled", budget=24, stride=2), method("act"), method("power"),
)  # fmt: skip
STEPS = [*((family, "dense") for family in FAMILIES if family != "gpt2"), *(("llama", how) for how in METHODS)]


@pytest.mark.parametrize(("family", "how"), STEPS)
def test_a_step_is_the_decoders(family, how):
    net = build(family)
    torch.testing.assert_close(decode(net, how), decode(net, how, backend="cpu_torch"), atol=5e-5, rtol=1e-5)


def test_bfloat16_errs_less_than_torch_does():
    exact = decode(build("llama").double())
    narrow = build("llama", torch.bfloat16)
    ours, theirs = decode(narrow), decode(narrow, backend="cpu_torch")
    assert (ours - exact).square().mean() <= 1.3 * (theirs - exact).square().mean()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["llama", "biases", "gemma3"])
def test_packed_matrices_stand_for_the_matrices_that_they_hold(family, bits):
    net = build(family)
    packed = round_matrices(net, bits)
    ours, exact = decode(net, packed=packed), decode(net, backend="cpu_torch")
    # The remaining difference: rows of x are rounded to 8 bits.
    assert (ours - exact).norm() <= 0.03 * exact.norm()
    assert (ours - exact).norm() > 0


@pytest.mark.parametrize("bits", [None, 4])
def test_a_sequence_does_not_feel_its_neighbours(bits):
    net = build("llama")
    packed = {HEAD: pack(quantize(net.output_matrix.numpy(), bits))} if bits else {}
    together = decode(net, packed=packed, prompts=tuple(range(20, 40)))
    assert torch.equal(together[:, 7], decode(net, packed=packed, prompts=(27,))[:, 0])


def test_two_engines_may_step_at_once():
    net = build("llama")
    alone = decode(net, steps=20)
    with ThreadPoolExecutor(3) as pool:
        for one in pool.map(lambda _: decode(net, steps=20, threads=2), range(3)):
            torch.testing.assert_close(one, alone, atol=2e-5, rtol=1e-5)


def test_a_token_that_is_none_is_refused():
    engine = Engine(build("llama"))
    engine.prefill(IDS[:4])
    with pytest.raises(IndexError, match="below 61"):
        engine.step(61)


def steer(net, sites, backend="auto", how="dense", threads=1):
    """Logits of two steps of two sequences, the second of which has a vector of its own added at each site."""
    engine = Engine(net, how, ROLES, page=16, backend=backend)
    states = [engine.open() for _ in range(2)]
    generator = torch.Generator().manual_seed(2)
    edits = [Add(site, torch.randn(1, 1, net.config.width, generator=generator)) for site in sites]
    taps = SequenceTaps(RequestTaps(tuple(PlacedEdit(edit, TokenRange(60)) for edit in edits)), net)
    for sequence, n in zip(states, (90, 60), strict=True):
        sequence.prefill(IDS[:n])
    opened = [s.state for s in states]
    with torch_threads(threads):
        found = [engine.runner.decode(opened, IDS[step : step + 2], (None, taps)).float() for step in range(2)]
    for sequence in states:
        sequence.close()
    return torch.stack(found)


SITES = [f"{name}.{layer}" for layer in range(3) for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out")]
SITES += ["embed", "resid_post.1", "resid_post.2", "final"]


@pytest.mark.parametrize("how", ["dense", method("recycled", budget=24, stride=2)], ids=["dense", "recycled"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_vectors_are_added_in_a_step_as_by_torch(family, how):
    net = build(family)
    for sites in (["attn_out.1", "final"], SITES):
        by_torch = steer(net, sites, "cpu_torch", how)
        torch.testing.assert_close(steer(net, sites, how=how), by_torch, atol=5e-5, rtol=1e-4)
        assert torch.equal(steer(net, sites, how=how), steer(net, sites, how=how, threads=3))


def test_a_step_with_and_without_vectors_runs_in_one_call_and_its_neighbour_keeps_every_bit(monkeypatch):
    net, calls, real = build("llama"), [], bindings.decode_step
    monkeypatch.setattr(bindings, "decode_step", lambda *given: calls.append(given) or real(*given))
    plain = steer(net, [])
    assert len(calls) == 2
    steered = steer(net, SITES)
    assert len(calls) == 4
    assert torch.equal(steered[:, 0], plain[:, 0])
    assert not torch.equal(steered[:, 1], plain[:, 1])
