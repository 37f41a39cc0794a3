"""The independent oracle of the method contract: what the engine did, and what it should have done, head by head.

`play` runs one sequence and writes down what every attention layer read and answered, and what every head holds after
every token. `expected` is what the method's `reference` and plain causal softmax say about the same rows. The softmax
here is written again on purpose: the product's own must not vouch for itself.
"""

import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from services.llm_longctx.engine import Engine
from services.llm_longctx.kv_cache import Entries
from services.llm_longctx.methods import AttentionMethod, Reference
from services.llm_longctx.tests.conftest import tiny_decoder
from shared.lm.attention import ignore_taps
from shared.lm.head_plan import HeadPlan

NEW = 5
"""Tokens fed after a prompt. No prompt of the contract has this length, so that prompts and answers tell apart."""

LENGTHS = (1, 2, 13, 47)  # prompt lengths, mostly prime: nothing fills a page, a block or a window by luck

CLOSE = 1e-6  # of numbers that are computed in float64 in another order, a float32 constant among them at times

PLAN = {
    "schema": "head-plan/1", "roles": [[1, 0], [0, 1]], "heads": [[0, 1], [1, 2]],
    "scores": {"duo_gate": [[0.9, 0.1], [0.2, 0.8]]},
}  # fmt: skip
OTHER_PLAN = {
    "schema": "head-plan/1", "roles": [[0, 1], [0, 1]], "heads": [[0, 3], [1, 1]],
    "scores": {"duo_gate": [[0.1, 0.9], [0.2, 0.8]]},
}  # fmt: skip


@cache
def model():
    """A random decoder of 2 layers, 4 query heads and 2 key/value heads, in float64, whose answers vary."""
    return tiny_decoder(positions=192).double()


@cache
def short_model():
    """The same with so few positions that a few short sequences fill the smallest pool."""
    return tiny_decoder(positions=96).double()


def tokens(n: int, seed: int = 0) -> list[int]:
    rng = random.Random(1000 * seed + 7)
    return [rng.randrange(250) for _ in range(n)]


MINE = tokens(40, seed=99)  # tokens fed after prompts


def trials(cls: type[AttentionMethod]) -> list[AttentionMethod]:
    """The method under the knobs that it names for short sequences, or under its defaults where it names none."""
    named = cls.contract_knobs
    several = [named] if isinstance(named, Mapping) else list(named)
    return [cls.model_validate(dict(knobs)) for knobs in several or [{}]]


def near(a: torch.Tensor, b: torch.Tensor, what: str, tolerance: float = CLOSE) -> None:
    assert a.shape == b.shape, f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)} differ"
    worst = float((a - b).abs().max()) if a.numel() else 0.0
    assert worst <= tolerance, f"{what}: they differ by {worst:.3g}"


def usual_plan(how: AttentionMethod) -> Mapping | None:
    return PLAN if how.needs_plan else None


class _Tapped:
    """The decoder, which writes down what its attention reads and answers."""

    def __init__(self, net) -> None:
        self._net = net
        layers = range(net.config.layers)
        self.rows: list[list[tuple[Tensor, ...]]] = [[] for _ in layers]
        self.hidden: list[list[Tensor]] = [[] for _ in layers]
        self.replays: list[list[dict]] = [[] for _ in layers]

    def __getattr__(self, name):
        return getattr(self._net, name)

    def __call__(self, ids, *, attend, tap=ignore_taps, **more):
        inputs: dict[int, Tensor] = {}
        replay = getattr(attend, "replay", None)

        def looking(site, layer, x):
            if site == "resid_pre":
                inputs[layer] = self._net.blocks[layer].input_layernorm(x)[0]
            return tap(site, layer, x)

        def tapped(layer, q, k, v, offset):
            out = attend(layer, q, k, v, offset)
            rows = [x[0].transpose(0, 1).clone() for x in (q, k, v, out)]
            if replay is None:
                self.rows[layer].append(tuple(rows))
                self.hidden[layer].append(inputs[layer])
            else:
                facts = {"start": replay.begin, "end": replay.end, "hidden": inputs[layer]}
                self.replays[layer].append(facts | dict(zip("qkv", rows, strict=False)))
            return out

        return self._net(ids, attend=tapped, tap=looking, **more)


@dataclass(frozen=True, eq=False)
class Played:
    """One sequence of N prompt tokens and T more."""

    prompt: int
    logits: Tensor  # [N+T,V]
    layers: list[tuple[Tensor, ...]]  # q [H,N+T,d], k and v [G,N+T,d], out [H,N+T,d] of every layer
    held: list  # entries of every head after the prompt and after each token: [T+1][L][G]
    pages: list[int]  # held at the same times [T+1]
    foreseen: list[int]  # by the engine's estimate, at the same times
    heads: object  # the method's decision about heads
    hidden: list[Tensor]  # the attention input [N+T,D] of every layer
    replays: list[list[dict]]  # replayed queries over the prompt, of every layer

    @property
    def positions(self) -> list:
        """Positions held, ascending: [T+1][L][G]."""
        return [[[sorted(e.positions.tolist()) for e in row] for row in time] for time in self.held]


def play(how: AttentionMethod, ids, fed=(), *, chunks=None, boundaries=None, page=4, plan=None, fresh=False) -> Played:
    """Read a prompt and feed tokens, on an engine of its own; what was played before is remembered, unless `fresh`."""
    plan = usual_plan(how) if plan is None else plan
    key = (type(how), repr(dict(how)), *map(tuple, (ids, fed, chunks or (), boundaries or ())), page, repr(plan))
    if fresh or key not in _PLAYED:
        _PLAYED[key] = _play(how, ids, fed, chunks, boundaries, page, plan)
    return _PLAYED[key]


_PLAYED: dict[tuple, Played] = {}


def _play(how, ids, fed, chunks, boundaries, page, plan) -> Played:
    net = _Tapped(model())
    engine = Engine(net, page=page, kv_bytes=1)
    s = engine.open(how, plan)
    G, held, pages, foreseen = net.config.kv_heads, [], [], []

    def look():
        held.append([[_copy(s.entries(layer, g)) for g in range(G)] for layer in range(net.config.layers)])
        pages.append(s.kv_bytes() // engine.pool.page_bytes)
        foreseen.append(s.policy.nbytes(len(ids), len(pages) - 1, engine.pool) // engine.pool.page_bytes)

    logits = [s.prefill(ids, chunks, boundaries)]
    look()
    for token in fed:
        logits.append(s.step(token)[None])
        look()
    heads = s.policy.heads
    s.close()
    assert engine.pool.held == 0, f"{how.name}: pages are held after the sequence was closed"
    layers = [tuple(torch.cat(x, 1) for x in zip(*rows, strict=True)) for rows in net.rows]
    hidden = [torch.cat(rows) for rows in net.hidden]
    return Played(len(ids), torch.cat(logits), layers, held, pages, foreseen, heads, hidden, net.replays)


def _copy(held: Entries) -> Entries:
    weight = None if held.log_weight is None else held.log_weight.clone()
    return Entries(held.k.clone(), held.v.clone(), held.positions.clone(), weight)


def softmax_under(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, weight: Tensor | float = 0.0) -> Tensor:
    """Plain attention in float64: q [H,T,d], k and v [G,S,d], mask and log-weights [H,T,S] or [T,S] → out [H,T,d]."""
    R = q.shape[0] // k.shape[0]
    out = []
    for h in range(q.shape[0]):
        logits = q[h].double() @ k[h // R].double().T / q.shape[-1] ** 0.5
        logits = logits + (weight[h] if isinstance(weight, Tensor) and weight.dim() == 3 else weight)
        seen = mask[h] if mask.dim() == 3 else mask
        out.append(torch.softmax(logits.masked_fill(~seen, float("-inf")), -1) @ v[h // R].double())
    return torch.stack(out)


def causal(rows: int, columns: int) -> Tensor:
    """The last `rows` of `columns` positions see what is not behind them: bool [rows,columns]."""
    return torch.arange(columns) <= torch.arange(columns - rows, columns)[:, None]


def ask(how: AttentionMethod, q: Tensor, k: Tensor, v: Tensor, **inputs) -> Reference:
    taken = inspect.signature(how.reference).parameters
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()):
        inputs = {name: value for name, value in inputs.items() if name in taken}
    return how.reference(q, k, v, **inputs)


@dataclass(frozen=True, eq=False)
class Expected:
    """Expected N prompt rows and T decode rows of one layer, for heads that the method acts on."""

    out: Tensor  # [H,N+T,d]
    mask: Tensor  # [H,N+T,N+T], real entries only
    weight: Tensor  # log-weights of pairs [H,N+T,N+T]


def expected(how: AttentionMethod, q: Tensor, k: Tensor, v: Tensor, prompt: int, chunks=None, **inputs) -> Expected:
    """The reference's prompt and answer: each phase as the method acts in it, dense where it does not.

    A reference that takes decode steps (`q_new`, `k_new`, `v_new`) answers for those; any other one is asked about
    prompt and answer as one sequence, and its last rows are the steps.
    """
    (H, total, _), N = q.shape, prompt
    T = total - N
    mask = causal(total, total).expand(H, total, total).clone()
    out, weight = softmax_under(q, k, v, mask), torch.zeros(H, total, total, dtype=torch.float64)
    inputs = {"chunks": tuple(chunks or (N,)), **inputs}
    if "prefill" in how.active_phases:
        read = ask(how, q[:, :N], k[:, :N], v[:, :N], **inputs)
        assert read.out.shape == out[:, :N].shape, f"{how.name}: reference gives {tuple(read.out.shape)} for a prompt"
        out[:, :N], mask[:, :N, :N] = read.out, read.mask
        weight[:, :N, :N] = 0.0 if read.log_weight is None else read.log_weight
    if "decode" in how.active_phases and T:
        steps = {"q_new": q[:, N:], "k_new": k[:, N:], "v_new": v[:, N:]}
        stepped = ask(how, q[:, :N], k[:, :N], v[:, :N], **steps, **inputs)
        if stepped.out.shape[1] == N:
            whole = {**inputs, "chunks": (*inputs["chunks"], *(1,) * T)}
            stepped = ask(how, q, k, v, **whole)
        assert stepped.out.shape[1] in {T, total}, f"{how.name}: reference gives {tuple(stepped.out.shape)} for steps"
        out[:, N:], mask[:, N:] = stepped.out[:, -T:], stepped.mask[:, -T:]
        weight[:, N:] = 0.0 if stepped.log_weight is None else stepped.log_weight[:, -T:]
    return Expected(out, mask, weight)


def acts_on(how: AttentionMethod, heads, layer: int, config) -> list[bool]:
    """Query heads that the method treats: those that it calibrates, else those it cuts, else all: [H]."""
    R = config.heads // config.kv_heads
    if heads.calibrated:
        return [(layer, h) in heads.calibrated for h in range(config.heads)]
    if heads.full is None:
        return [True] * config.heads
    return [not heads.full[layer][h // R] for h in range(config.heads)]


def of_layer(how: AttentionMethod, played: Played, layer: int, **way) -> Expected:
    """Expected output of one layer of a played sequence: heads that the method leaves alone are dense."""
    key = (played, layer, repr(way))
    if key not in _EXPECTED:
        _EXPECTED[key] = _of_layer(how, played, layer, **way)
    return _EXPECTED[key]


_EXPECTED: dict[tuple, Expected] = {}


def _of_layer(how: AttentionMethod, played: Played, layer: int, **way) -> Expected:
    config, full = model().config, played.heads.full
    q, k, v, _ = played.layers[layer]
    (H, total, _), dense = q.shape, causal(q.shape[1], q.shape[1])
    acted = acts_on(how, played.heads, layer, config)
    groups = [True] * config.kv_heads if full is None else [not one for one in full[layer]]
    weight = torch.zeros(H, total, total, dtype=torch.float64)
    whole = Expected(softmax_under(q, k, v, dense), dense.expand(H, total, total).clone(), weight)
    if any(acted):
        # Heads that are cut may compete with each other, never with those that keep everything.
        rows = [group for group in groups for _ in range(H // len(groups))]
        facts = facts_of(played, layer, groups, rows)
        if how.shares_model_budget:
            facts["rivals"] = rivals(how, played, layer)
        part = expected(how, q[rows], k[groups], v[groups], played.prompt, **facts, **way)
        mine = [one for one, row in zip(acted, rows, strict=True) if row]
        for all_heads, own in ((whole.out, part.out), (whole.mask, part.mask), (whole.weight, part.weight)):
            all_heads[acted] = own[mine]
    return whole


def facts_of(played: Played, layer: int, groups: Sequence[bool], rows: Sequence[bool]) -> dict:
    """Input of a reference besides queries, keys and values of some heads of a layer."""
    config, columns = model().config, torch.tensor(rows).repeat_interleave(model().config.head_dim)
    return {
        "layer": layer,
        "layers": config.layers,
        "rope_theta": config.rope_theta,
        "kv_heads": [g for g, one in enumerate(groups) if one],
        "hidden": played.hidden[layer],
        "wo": model().blocks[layer].self_attn.o_proj.weight[:, columns],
        "replays": [one | {"q": one["q"][rows], "k": one["k"][groups]} for one in played.replays[layer]],
    }


def rivals(how: AttentionMethod, played: Played, layer: int) -> tuple[list[Tensor], int]:
    """Scores of all heads of the model that are cut, and where those of a layer begin."""
    found, begin, N = [], 0, played.prompt
    for i, (q, k, v, _) in enumerate(played.layers):
        begin = len(found) if i == layer else begin
        groups = [not one for one in played.heads.full[i]]
        rows = [group for group in groups for _ in range(q.shape[0] // len(groups))]
        if any(groups):
            found += list(how.scores(q[rows, :N], k[groups, :N], v[groups, :N], **facts_of(played, i, groups, rows)))
    return found, begin


def parse(plan: Mapping | None) -> HeadPlan | None:
    return None if plan is None else HeadPlan.parse(plan)


def default(cls: type[AttentionMethod]) -> list[AttentionMethod]:
    return [] if cls() in trials(cls) else [cls()]


def borders(n: int) -> list[int]:
    return [*(at for at in (0, 3, 9, 20, 26, 41, 48) if at < n), n]
