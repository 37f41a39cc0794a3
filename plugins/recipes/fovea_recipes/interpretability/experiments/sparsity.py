"""Sparsity experiment: prunes a shipped network by magnitude and claims only what was measured: zeros, bytes, time.

Zeros are counted in the pruned weights layer by layer, N:M is verified, and both networks are timed in turn on the
kernels that are here. These are dense: zeros are multiplied like all other numbers, and the claim states it ("masked
dense"). Nothing is trained again, so quality stays open. Knows networks by their manifests; claims are
`shared.sparsity`'s.
"""

import copy
import platform
import statistics
import time
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fovea.errors import InvalidOption, NotFound
from fovea_recipes.interpretability.pruning import (
    PruningPattern,
    count_stored_bytes,
    prune,
    sparsity_by_layer,
    verify_nm,
)
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec
from services.interpretability.core.report import Report, Scalar, Table, heat_map, json_digest
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.models.tiny_induction import BYTE_TOKENIZER_ID, byte_tokenizer
from shared.registry import Card, Paper, network
from shared.registry.discovery import shipped_weights
from shared.registry.sparsity_claims import build_claim
from shared.registry.weights import read_manifest, read_weights
from shared.sparsity import SparsityClaim, lint

DEFAULT_NETWORK = "pranet"

_COUNTED = (
    "Counted in the pruned weights; bytes at float16, with a bit per place; the answer's change relative to its "
    "length, nothing trained again."
)
_TIMED = "Medians in turn on the dense kernels here, what the lint finds, and the claim as JSON."


@dataclass(frozen=True)
class _StudiedNetwork(StudiedModel):
    """A shipped network of any kind; it is not a decoder."""

    model: Any

    @property
    def dtype(self) -> str:
        return "float32"

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def seconds_per_token(self) -> float:
        return 0.0


class SparsityStudySpec(Spec):
    """Pruning patterns, timed calls and size of the input."""

    patterns: list[str] = Field(
        ["0.5", "0.7", "0.9", "2:4"],
        min_length=1,
        max_length=8,
        description="Shares of zeros, such as 0.7, or N:M, such as 2:4.",
    )
    runs: int = Field(30, ge=2, le=300, description="Timed calls of each network; a claim needs 30.")
    side: int = Field(96, ge=32, le=704, multiple_of=32, description="Side of the picture, or tokens of the text.")


class SparsityStudy(Experiment[SparsityStudySpec]):
    """Measures what pruning leaves, and builds the claim that may be made about it."""

    In = SparsityStudySpec
    route: ClassVar[str] = "sparsity"
    card: ClassVar[Card] = Card(
        name="sparsity",
        task="probe",
        licence="Apache-2.0",
        summary="Prunes a shipped network by magnitude, counts and times it, and lints the claim that follows.",
        paper=Paper.on_arxiv("Ten Lessons We Have Learned in the New Sparseland", 2023, "2302.02596"),
        notes=(
            "Kernels here are dense, so zeros save nothing but bytes: expect a ratio of 1, and 2:4 to be masked dense.",
            "Nothing is trained again after pruning; claims leave quality open.",
            "The served network is never changed. A study of another model, so there is no ONNX graph.",
        ),
        example={"lm": DEFAULT_NETWORK, "seed": 0, "patterns": ["0.9", "2:4"], "runs": 3, "side": 32},
    )

    def load_model(self, name: str | None) -> StudiedModel:
        """Return a network of the shipped weights of that name; `NotFound` if none takes a picture or tokens."""
        known = {key: file for key, file in shipped_weights().items() if _input_kind(key) is not None}
        wanted = name or DEFAULT_NETWORK
        if wanted not in known:
            detail = f"There are no weights {wanted!r} to prune; known are {', '.join(known) or 'none'}."
            raise NotFound(detail, field="lm")
        return _load_network(wanted)

    def cost(self, spec: SparsityStudySpec, subject: StudiedModel) -> Cost:
        cells, inputs = len(_parse_patterns(spec)), _draw_input(subject.name, spec.side, spec.seed)
        return Cost(forwards=cells * (spec.runs + 1), tokens=cells * (spec.runs + 1) * inputs.numel(), cells=cells)

    def run(self, spec: SparsityStudySpec, subject: StudiedModel, progress: Progress) -> Report:
        inputs = _draw_input(subject.name, spec.side, spec.seed)

        def work(text: str) -> dict[str, Any]:
            return _measure_pattern(subject, PruningPattern.parse(text), inputs, spec.runs)

        content = {"runs": spec.runs, "side": spec.side, "seed": spec.seed, "machine": platform.machine()}
        cells = progress.each(_parse_patterns(spec), lambda text: {**content, "pattern": text}, work)
        return _report(subject, dict(cells))


def _parse_patterns(spec: SparsityStudySpec) -> list[str]:
    for text in spec.patterns:
        PruningPattern.parse(text)
    return list(dict.fromkeys(spec.patterns))


def _measure_pattern(subject: StudiedModel, pattern: PruningPattern, inputs: Tensor, runs: int) -> dict[str, Any]:
    """Measure the fields of a claim, and how far the answer moved."""
    state = prune({name: weight.detach() for name, weight in subject.model.named_parameters()}, pattern)
    thin = copy.deepcopy(subject.model)
    thin.load_state_dict(state, strict=False)
    layers = sparsity_by_layer(state)
    total = sum(state[name].numel() for name in layers)
    if not (kept := sum(int(state[name].count_nonzero()) for name in layers)):
        raise InvalidOption(f"A share of {pattern.share} leaves no weight.", field="patterns")
    share = 1 - kept / total
    moved, dense_ms, ms = _time_both(subject.model, thin, inputs, runs)
    values, index = count_stored_bytes(state)
    p50, dense_p50 = statistics.median(ms), statistics.median(dense_ms)
    matrices = [weight.flatten(1) for weight in state.values() if weight.dim() >= 2]
    fitting = [weight for weight in matrices if pattern.m and weight.shape[1] % pattern.m == 0]
    return {
        "moved": moved,
        "claim": {
            "kind": "weight",
            "granularity": "n:m" if pattern.m else "unstructured",
            "when": "post",
            "pattern": {"n": pattern.n, "m": pattern.m} if pattern.m else None,
            "path": "dense-to-sparse",
            "mask": "static",
            "sparsity_by_layer": layers,
            "sparsity_global": share,
            "theoretical_flops_ratio": 1 - share,
            "value_bytes": values,
            "index_bytes": index,
            "nm_verified": bool(fitting) and all(verify_nm(w, pattern.n, pattern.m) for w in fitting)
            if pattern.m
            else None,
            "measured": {
                "speedup": dense_p50 / p50,
                "device": platform.processor() or platform.machine(),
                "batch": 1,
                "dtype": "float32",
                "kernel": "torch, zeros multiplied like other numbers",
                "kernel_sparse": False,
                "runs": runs,
                "p50_ms": p50,
                "p95_ms": float(np.percentile(ms, 95)),
                "dense_kernel": "torch",
                "dense_p50_ms": dense_p50,
            },
        },
    }


@torch.inference_mode()
def _time_both(dense: nn.Module, thin: nn.Module, inputs: Tensor, runs: int) -> tuple[float, list[float], list[float]]:
    """How far the first answer moved, relative to it, and milliseconds of both networks in turn."""
    first, second = _first_tensor(dense(inputs)), _first_tensor(thin(inputs))
    moved = float((first - second).norm() / first.norm().clamp(min=1e-12))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for net, ms in zip((dense, thin), taken, strict=True):
            started = time.perf_counter()
            net(inputs)
            ms.append(1000 * (time.perf_counter() - started))
    return moved, *taken


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def _report(subject: StudiedModel, measured: dict[str, dict[str, Any]]) -> Report:
    claims = {text: build_claim(f"{subject.name} at {text}", facts["claim"]) for text, facts in measured.items()}
    rows = [
        [text, claim.sparsity_global, claim.value_bytes, claim.index_bytes, claim.nm_verified, measured[text]["moved"]]
        for text, claim in claims.items()
    ]
    names = list(next(iter(claims.values())).sparsity_by_layer) if claims else []
    shares = [[claim.sparsity_by_layer[name] for name in names] for claim in claims.values()]
    speeds = [_speed_row(text, measured[text]["claim"]["measured"], claim) for text, claim in claims.items()]
    axes = ("pattern", claims), ("layer", names)
    fits = "Share of zeros in each matrix; 0 where the pattern does not fit."
    return Report(
        title=f"Sparsity of {subject.name}",
        scalars={"layers": Scalar(value=len(names), note="Matrices that could hold zeros.")},
        tables=[
            Table.of("zeros", "pattern, zeros, value bytes, index bytes, n:m verified, answer moved", rows, _COUNTED),
            Table.of("speed", "pattern, dense ms, pruned ms, times as fast, open rules, claim", speeds, _TIMED),
        ],
        grids=[heat_map("by layer", shares, *axes, fits)] if claims else [],
    )


def _speed_row(text: str, measured: dict[str, Any], claim: SparsityClaim) -> list[Any]:
    open_rules = " ".join(finding.rule for finding in lint(claim))
    times = [measured[name] for name in ("dense_p50_ms", "p50_ms", "speedup")]
    return [text, *times, open_rules, claim.model_dump_json()]


def _input_kind(name: str) -> Literal["tokens", "picture"] | None:
    """Input of a network; None where it takes neither."""
    if "vocab" in read_manifest(shipped_weights()[name]).network.config:
        return "tokens"
    return "picture" if name.partition("-")[0] in {"pranet", "patnet", "fasternet"} else None


def _draw_input(name: str, side: int, seed: int) -> Tensor:
    """Random tokens or a random picture, whichever the network takes."""
    generator = torch.Generator().manual_seed(seed)
    if _input_kind(name) == "picture":
        return torch.randn(1, 3, side, side, generator=generator)
    config = read_manifest(shipped_weights()[name]).network.config
    tokens = min(side, int(config.get("context", side)))
    return torch.randint(0, config["vocab"] - 1, (1, tokens), generator=generator)


@cache
def _load_network(name: str) -> _StudiedNetwork:
    weights = read_weights(shipped_weights()[name])
    spec = weights.manifest.network
    net = network(spec.name, **spec.config).requires_grad_(requires_grad=False).eval()
    net.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()})
    return _StudiedNetwork(
        name, net, byte_tokenizer(), weights.manifest.sha256, json_digest(BYTE_TOKENIZER_ID), "Apache-2.0"
    )
