"""TriAttention: its scores by brute force, the order of true logits, calibrated centres, and what decoding keeps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fovea.errors import BadInput
from services.interpretability.head_plans.statistic import query_centres
from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import method
from services.llm_longctx.methods.core.hook_inputs import ScoringView
from services.llm_longctx.tests.tiny_models import random_decoder, tiny_decoder
from shared.lm.attention import sdpa
from shared.lm.builders import llama
from shared.lm.head_plan import HeadPlan

BUNDLED = Path(__file__).parents[1] / "weights/heads/smollm2-135m-instruct"
THETA = 1 / 10000.0 ** (torch.arange(0, 16, 2).double() / 16)
H, G, D, N = 4, 2, 16, 50


def complex_pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.complex(x[..., : x.shape[-1] // 2].double(), x[..., x.shape[-1] // 2 :].double())


def turn(x: torch.Tensor, position) -> torch.Tensor:
    """Rotate complex pairs [...,f] to positions."""
    return x * torch.polar(torch.ones_like(THETA), THETA * position)


def plan_of(mean: torch.Tensor, size: torch.Tensor) -> HeadPlan:
    """A plan from centres [L,H,f]."""
    tables = {"real": mean.real.tolist(), "imag": mean.imag.tolist(), "size": size.tolist()}
    return HeadPlan.parse({"schema": "head-plan/1", "centres": tables})


def view_of(keys: torch.Tensor, positions: torch.Tensor, tokens: int) -> ScoringView:
    rotated = torch.stack([turn(keys[:, i], int(p)) for i, p in enumerate(positions)], 1)
    k = torch.cat((rotated.real, rotated.imag), -1).float()
    q = torch.zeros(len(keys) * H // G, 1, D)
    at = positions.expand(len(keys), -1)
    return ScoringView(1, q, k, k, at, tokens, tuple(range(len(keys))), THETA.float())


@pytest.mark.parametrize("mode", ["per_head", "union"])
def test_scores_are_the_mean_logits_of_the_centre_over_distances_and_what_the_spread_adds(mode):
    torch.manual_seed(3)
    mean, keys = torch.randn(2, H, D // 2, dtype=torch.complex128), torch.randn(G, N, D // 2, dtype=torch.complex128)
    size = mean.abs() * torch.rand(2, H, D // 2) + mean.abs()
    positions = torch.arange(N) * 3 + 1
    how = method("triattention", recent=1, protect_prompt=False, mode=mode).bind(plan_of(mean, size))
    found = how.score(view_of(keys, positions, 400))
    expected = torch.zeros(H, N, dtype=torch.float64)
    for h in range(H):
        for i, p in enumerate(positions.tolist()):
            key = turn(keys[h // 2, i], p)
            logits = [(turn(mean[1, h], 400 + 2**e) * key.conj()).real.sum() for e in range(17)]
            expected[h, i] = sum(logits) / 17 + ((size[1, h] - mean[1, h].abs()) * key.abs()).sum()
    expected = (expected - expected.mean(1, keepdim=True)) / expected.std(1, correction=0, keepdim=True)
    best = expected.view(G, 2, N).amax(1)
    torch.testing.assert_close(
        found.double(), best.amax(0).expand(G, N) if mode == "union" else best, atol=2e-3, rtol=0
    )


@pytest.fixture(scope="module")
def net():
    return tiny_decoder()


def normed_decoder():
    """A Qwen 3, whose queries have a norm per head before they are rotated."""
    sizes = {"vocab": 272, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 48, "positions": 192}
    return random_decoder(lambda: llama(**sizes, qk_norm=True))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_calibration_averages_queries_before_their_rotation(qk_norm):
    config, seen = (net := normed_decoder() if qk_norm else tiny_decoder()).config, {}
    texts = [[(7 * i + 3) % config.vocab for i in range(40)], [(5 * i + 1) % config.vocab for i in range(23)]]

    def attend(layer, q, k, v, _offset):
        pairs = complex_pairs(q[0])
        theta = 1 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).double() / config.head_dim)
        back = torch.polar(torch.ones(q.shape[1], len(theta)).double(), -torch.arange(q.shape[1])[:, None] * theta)
        seen.setdefault(layer, []).append(pairs * back[:, None])
        return sdpa(q, k.transpose(1, 2), v.transpose(1, 2))

    for ids in texts:
        net(torch.tensor(ids)[None], attend=attend)
    found = query_centres(net, texts)
    for layer, parts in seen.items():
        every = torch.cat(parts)
        mean, size = every.mean(0), every.abs().mean(0)
        for name, wanted in (("real", mean.real), ("imag", mean.imag), ("size", size)):
            got = torch.tensor(getattr(found, name)[layer]).double()
            torch.testing.assert_close(got, wanted, atol=1e-3 * float(size.max()), rtol=1e-3)
    plan = HeadPlan.parse({"schema": "head-plan/1", "centres": found.model_dump()}).check(config)
    assert HeadPlan.parse(plan.text()).digest == plan.digest
    with pytest.raises(BadInput, match="query centres"):
        plan_of(torch.zeros(1, 1, 2, dtype=torch.complex64), torch.zeros(1, 1, 2)).check(config)


@pytest.mark.parametrize("calibrated", [True, False])
def test_decoding_keeps_the_prompt_the_newest_and_the_budget_and_frees_pages(net, calibrated):
    config = net.config
    mean = torch.randn(config.layers, config.heads, config.head_dim // 2, dtype=torch.complex64)
    plan = plan_of(mean, 2 * mean.abs()) if calibrated else None
    engine = Engine(net, page=4)
    prompt = [(3 * i + 1) % config.vocab for i in range(20)]
    s = engine.open(method("triattention", budget=16, every=8, recent=6), plan)
    assert (s.state.policy.method._centres is not None) == calibrated
    s.prefill(prompt)
    most = 0
    for i in range(64):
        s.step((5 * i) % config.vocab)
        most = max(most, s.kv_bytes())
    held = s.state.cache.entries(1, 0).positions.sort().values.tolist()
    assert held[:20] == list(range(20))
    assert held[-6:] == list(range(78, 84))
    assert len(held) == 20 + 16
    assert most <= s.state.policy.nbytes(20, 64, engine.pool) < engine.dense_bytes(84)
    assert "centres" not in s.state.policy.method.model_dump_json()
    s.close()
    fitted = method("triattention").fit(engine.model.config.layers * config.kv_heads * 30, config, None, 60, 4)
    assert not fitted.protect_prompt
    assert fitted.budget < 30


def test_the_plan_that_comes_with_smollm2_has_centres_of_all_its_heads():
    plan = HeadPlan.read(BUNDLED / "centres.json")
    assert plan.centres.tables.shape == (3, 30, 9, 32)
    real, imag, size = plan.centres.tables
    concentration = np.hypot(real, imag) / size
    assert 0.6 < concentration.mean() < 0.8  # queries lie near their centres, as the paper says
    assert (concentration <= 1 + 1e-3).all()
