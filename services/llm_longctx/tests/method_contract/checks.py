"""Results of a method: its reference against plain softmax, the engine against the reference."""

import inspect
import math
from collections.abc import Mapping

import torch

from services.llm_longctx.methods import AttentionMethod, method
from services.llm_longctx.tests.method_contract.oracle import (
    CLOSE,
    LENGTHS,
    MINE,
    NEW,
    Played,
    borders,
    causal,
    default,
    expected,
    model,
    near,
    of_layer,
    play,
    softmax_under,
    tokens,
    trials,
)


def check_reference(cls: type[AttentionMethod]) -> None:
    """It is causal attention under its mask: rows mix values that they may see, whatever the heads and lengths."""
    for how in trials(cls):
        for H, G, N in ((4, 2, 1), (4, 2, 2), (6, 2, 37), (4, 4, 31), (3, 1, 53)):
            torch.manual_seed(N)
            q, k, v = (torch.randn(heads, N + NEW, 8, dtype=torch.float64) for heads in (H, G, G))
            before = q.clone(), k.clone(), v.clone()
            facts = {"layer": 0, "layers": 2, "rope_theta": 10000.0, "wo": torch.randn(6, H * 8, dtype=q.dtype)}
            wanted, again = (expected(how, q, k, v, N, **facts) for _ in range(2))
            where = f"{cls.name}'s reference on {H} over {G} heads, {N} tokens"
            assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True)), f"{where} writes its inputs"
            assert wanted.out.dtype == torch.float64, f"{where} is not float64"
            assert torch.isfinite(wanted.out).all(), f"{where} is not finite"
            near(wanted.out, again.out, f"{where}, twice", 0.0)
            _check_mask(wanted.mask, N, where)
            _check_mixing(how, q, k, v, N, wanted, where, facts)


def _check_mask(mask: torch.Tensor, prompt: int, where: str) -> None:
    total = mask.shape[1]
    assert mask.dtype == torch.bool, f"{where}: the mask is not bool"
    assert not (mask & ~causal(total, total)).any(), f"{where}: a row sees what comes after it"
    assert mask.any(-1).all(), f"{where}: a row sees nothing"
    assert mask.diagonal(dim1=1, dim2=2)[:, prompt:].all(), f"{where}: a step does not see its own entry"


def _check_mixing(how: AttentionMethod, q, k, v, N: int, wanted, where: str, facts: Mapping) -> None:
    """Rows are convex mixtures of the values up to them; by softmax under the mask, unless entries are transformed."""
    constant = expected(how, q, k, torch.full_like(v, 0.75), N, **facts).out
    near(constant, torch.full_like(constant, 0.75), f"{where}: weights of a row don't add up to 1")
    R, total = q.shape[0] // k.shape[0], q.shape[1]
    values = v.repeat_interleave(R, 0)
    lowest, highest = values.cummin(1).values, values.cummax(1).values
    inside = (wanted.out >= lowest - CLOSE) & (wanted.out <= highest + CLOSE)
    assert inside.all(), f"{where}: a row is no mixture of the values that it may see"
    if "transform" in how.actions or _stands_in(how):
        return
    near(wanted.out, softmax_under(q, k, v, wanted.mask, wanted.weight), f"{where} against softmax under its own mask")
    assert (wanted.weight >= 0).all(), f"{where}: a pair counts less than once"
    whole = (wanted.mask.sum(-1) == torch.arange(1, total + 1)) & ~wanted.weight.any(-1)
    dense = softmax_under(q, k, v, causal(total, total))
    near(wanted.out[whole], dense[whole], f"{where}: rows that see everything are not dense")


def _stands_in(how: AttentionMethod) -> bool:
    """Whether entries are held that stand for dropped ones: then the mask alone does not say what is mixed."""
    played = play(how, tokens(47, 47), MINE[:NEW])
    return any(-1 in row for time in played.positions for layer in time for row in layer)


def check_engine(cls: type[AttentionMethod]) -> None:
    """Every layer's output is the reference's, in prompt and answer, under the contract's knobs and the defaults."""
    for how in (*trials(cls), *default(cls)):
        named = inspect.signature(how.reference).parameters
        for n in LENGTHS if how in trials(cls) else LENGTHS[::4]:  # by default little is cut of so few
            ways: list[dict] = [{}]
            if "chunks" in named and how.supports.chunked_prefill and n > 2:
                ways += [{"chunks": [n - 2, 2]}, {"chunks": [n // 3, n - n // 3]}]
            if "boundaries" in named:
                ways += [{"boundaries": borders(n)}]
            for way in ways:
                played = play(how, tokens(n, n), MINE[:NEW], **way)
                for layer in range(len(played.layers)):
                    _check_layer(how, played, layer, way)


def _check_layer(how: AttentionMethod, played: Played, layer: int, way: Mapping) -> None:
    q, _, _, out = played.layers[layer]
    wanted, N = of_layer(how, played, layer, **way), played.prompt
    where = f"{how.name} {how.model_dump_json()}, {N} tokens in {way or 'one chunk'}, layer {layer}"
    near(out[:, :N], wanted.out[:, :N], f"{where}: prompt")
    near(out[:, N:], wanted.out[:, N:], f"{where}: answer")
    if "transform" in how.actions:
        return
    for step in range(q.shape[1] - N):
        for g, held in enumerate(played.held[step][layer]):
            if (held.positions < 0).any():
                _check_stand_in(played, layer, g, step, out, where)


def _check_stand_in(played: Played, layer: int, g: int, step: int, out, where: str) -> None:
    """A step's output is softmax over what its head holds; a virtual entry weighs at most what it stands for."""
    q, k, v, _ = played.layers[layer]
    held, now = played.held[step][layer][g], played.prompt + step
    weight = torch.zeros(len(held.positions)) if held.log_weight is None else held.log_weight
    virtual = held.positions < 0
    real = held.positions[~virtual]
    dropped = torch.tensor(sorted(set(range(now)) - set(real.tolist())), dtype=torch.long)
    assert virtual.sum() == 1, f"{where}: {int(virtual.sum())} virtual entries"
    assert not weight[~virtual].any(), f"{where}: real entries have log-weights"
    if weight[virtual] > -math.inf:
        assert weight[virtual] <= math.log(max(len(dropped), 1)) + CLOSE, f"{where}: the virtual entry weighs too much"
        for one, all_of in ((held.k[virtual][0], k[g, dropped]), (held.v[virtual][0], v[g, dropped])):
            inside = (one >= all_of.amin(0) - CLOSE) & (one <= all_of.amax(0) + CLOSE)
            assert inside.all(), f"{where}: the virtual entry is no mean of what was dropped"
    R = q.shape[0] // k.shape[0]
    keys, values = torch.cat((held.k, k[g, now : now + 1])), torch.cat((held.v, v[g, now : now + 1]))
    mine = softmax_under(
        q[g * R : (g + 1) * R, now : now + 1], keys[None], values[None], torch.ones(1, len(keys), dtype=torch.bool),
        torch.cat((weight, weight.new_zeros(1))),
    )  # fmt: skip
    near(out[g * R : (g + 1) * R, now : now + 1], mine, f"{where}: step {step + 1} against what head {g} holds")


def check_retention(cls: type[AttentionMethod]) -> None:
    """Heads hold exactly what the reference attends to next; full heads, and methods that free nothing, hold all."""
    for how in trials(cls):
        evicts = False
        for n in LENGTHS:
            played = play(how, tokens(n, n), MINE[:NEW])
            for layer in range(len(played.layers)):
                evicts |= _check_held(how, played, layer)
        if how.actions:
            assert evicts == ("eviction" in how.actions), f"{how.name} says {set(how.actions)} and evicts: {evicts}"


def _check_held(how: AttentionMethod, played: Played, layer: int) -> bool:
    """One layer of one sequence; whether anything was evicted."""
    wanted, R, evicts = of_layer(how, played, layer), model().config.heads // model().config.kv_heads, False
    for step in range(NEW):
        now = played.prompt + step
        for g in range(model().config.kv_heads):
            held = {p for p in played.positions[step][layer][g] if p >= 0}
            read = set(wanted.mask[g * R : (g + 1) * R, now, :now].any(0).nonzero()[:, 0].tolist())
            full = played.heads.full is None or played.heads.full[layer][g]
            where = f"{how.name} {how.model_dump_json()}, {played.prompt} tokens, layer {layer}, head {g}, step {step}"
            assert read <= held, f"{where}: {sorted(read - held)} are to be read and gone"
            assert not full or held == set(range(now)), f"{where}: a full head lost entries"
            if len(held) < now:
                evicts = True
                idle = held - read
                assert "visibility" in how.actions or not idle, f"{where}: {sorted(idle)} are held and never read"
    return evicts


def check_effect(cls: type[AttentionMethod]) -> None:
    """It does something where it says that it acts, and nothing where it does not."""
    acts = False
    for how in trials(cls):
        for chunks in (None, [16, 31]) if how.supports.chunked_prefill else (None,):
            played = play(how, tokens(47, 47), MINE[:NEW], chunks=chunks)
            N = played.prompt
            for layer, (q, k, v, out) in enumerate(played.layers):
                dense = softmax_under(q, k, v, causal(q.shape[1], q.shape[1]))
                changed = (out - dense).abs().amax((0, 2)) > CLOSE
                acts |= bool(changed.any())
                where = f"{how.name} {how.model_dump_json()}, layer {layer}"
                for phase, part in (("prefill", changed[:N]), ("decode", changed[N:])):
                    assert phase in how.active_phases or not part.any(), f"{where}: {phase} is not dense"
        if how.identity() == {}:
            mine, dense = (play(one, tokens(47, 47), MINE[:NEW]).logits[:47] for one in (how, method("dense")))
            near(mine, dense, f"{how.name} shares prefixes with dense, and reads prompts differently")
    named = "" if cls.contract_knobs else " on short prompts; small contract_knobs may be missing"
    assert acts == bool(cls.phases or cls.actions), f"{cls.name} says {set(cls.phases)}, and acts: {acts}{named}"
