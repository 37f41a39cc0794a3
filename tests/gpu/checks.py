"""Requirements on a card: kernels agree with the oracle, steps with a CPU's. They run on a stand-in, too."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from services.llm_longctx import kernels
from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.kernels.block_sparse_prefill import reference as prefill_oracle
from services.llm_longctx.kernels.decode import reference as decode_oracle
from shared.lm.decoder import Decoder

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def draw(*shape: int, dtype: torch.dtype, device: Any, seed: int) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def check_decode(device: Any, backend: str, dtype: torch.dtype, lengths: tuple[int, ...], group: int, d: int) -> None:
    """Runs of several lengths, an empty one too, over one pool."""
    total = sum(lengths)
    q = draw(len(lengths), group, d, dtype=dtype, device=device, seed=1)
    k, v = (draw(total, d, dtype=dtype, device=device, seed=seed) for seed in (2, 3))
    n = torch.tensor(lengths)
    start = n.cumsum(0) - n
    flags = torch.zeros(len(lengths), dtype=torch.bool)
    runs = kernels.DeviceRuns(start.to(device), n.to(device), flags.to(device), max(lengths), any_weighted=False)
    out, lse = kernels.decode_device_runs(q, (k, v, torch.zeros(total).to(device)), runs, backend=backend)
    parts = [slice(int(at), int(at + many)) for at, many in zip(start, n, strict=True)]
    on_host = [[x.cpu()[part] for part in parts] for x in (k, v)]
    wanted, sums = decode_oracle.decode(q.cpu(), *on_host, [None] * len(parts))
    assert (out.cpu().double() - wanted).abs().max() < TOLERANCE[dtype]
    seen = n > 0
    assert (lse.cpu().double() - sums)[seen].abs().max() < TOLERANCE[dtype]
    assert lse.cpu()[~seen].isneginf().all()


def check_prefill(device: Any, backend: str, dtype: torch.dtype, n: int, d: int) -> None:
    """A block-sparse mask over a prompt that ends in the middle of a block."""
    q = draw(4, n, d, dtype=dtype, device=device, seed=1)
    k, v = (draw(2, n, d, dtype=dtype, device=device, seed=seed) for seed in (2, 3))
    rows = -(-n // 64)
    mask = torch.rand((2, rows, rows), generator=torch.Generator().manual_seed(4)) < 0.4
    kept = kernels.BlockCsr.from_mask(mask, 64)
    there = kernels.BlockCsr(kept.row_ptr.to(device), kept.cols.to(device), 64, 64)
    out = kernels.block_sparse_prefill(q, k, v, there, backend=backend)
    wanted, _ = prefill_oracle.prefill(q.cpu(), k.cpu(), v.cpu(), kept)
    assert (out.cpu().double() - wanted).abs().max() < TOLERANCE[dtype]


def check_merge(device: Any, backend: str, dtype: torch.dtype) -> None:
    """Parts over disjoint keys, one of them empty."""
    outs = [draw(5, 3, 16, dtype=dtype, device=device, seed=i) for i in range(3)]
    sums = [draw(5, 3, dtype=torch.float32, device=device, seed=9 + i) for i in range(3)]
    sums[1] = torch.full_like(sums[1], -torch.inf)
    out, lse = kernels.merge(*zip(outs, sums, strict=True), backend=backend)
    shares = torch.stack([one.cpu().double() for one in sums]).softmax(0)
    wanted = sum(one.cpu().double() * share[..., None] for one, share in zip(outs, shares, strict=True))
    assert (out.cpu().double() - wanted).abs().max() < TOLERANCE[dtype]
    assert torch.allclose(lse.cpu(), torch.stack([one.cpu() for one in sums]).logsumexp(0), atol=1e-4)


def check_sampling(device: Any, backend: str, vocab: int) -> None:
    """Every kind of limit draws the oracle's token, of shares that lie far from borders."""
    limits: list[dict[str, Any]] = [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.0}]
    rows = [kernels.RowSettings(**{"temperature": 0.9} | one)._replace(share=0.37) for one in limits]
    logits = 3 * draw(len(rows), vocab, dtype=torch.float32, device=device, seed=5)
    wanted, found = (
        kernels.sample(x, kernels.SamplingRows.of(rows), backend=by)
        for x, by in ((logits.cpu(), "reference"), (logits, backend))
    )
    assert torch.equal(found.cpu(), wanted)


def check_engine(put: Callable[[Decoder], Decoder], model: Decoder, backend: str, bits: Any, tokens: int) -> Engine:
    """Greedy answers of a batch are a CPU's; the engine that gave them."""
    ids = [(7 * i + i * i) % model.config.vocab for i in range(80)]

    def asked() -> list[Request]:
        return [Request(ids[i : 30 + 9 * i], max_tokens=tokens - i) for i in range(3)]

    plain = Engine(model, page=16, backend="cpu_torch", cache_bits=bits, kv_bytes=1 << 20)
    wanted = [one.tokens for one in plain.generate(asked())]
    engine = Engine(put(copy.deepcopy(model)), page=16, backend=backend, cache_bits=bits, kv_bytes=1 << 20)
    assert [one.tokens for one in engine.generate(asked())] == wanted
    return engine
