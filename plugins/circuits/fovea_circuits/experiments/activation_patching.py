"""Activation patching of one pair: which site, layer and position (or head) carries the difference of two prompts.

Values of the corrupt run replace those of the clean one, a position or head at a time. Knows one pair; tasks are
studied by circuits.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from fovea.errors import InvalidOption, TooLarge
from fovea_circuits.circuit_tasks import first_tokens
from fovea_circuits.patching import logit_difference
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import Report, Scalar, heat_map
from services.interpretability.core.studied_model import StudiedModel
from shared.lm.taps import Replace, sweep, trace
from shared.registry import Paper

MAX_TOKENS = 128
"""Tokens of a prompt: each layer is run once with a copy of the prompt per position."""

_BY_HEAD = frozenset({"z", "q", "k", "v"})


class ActivationPatchingSpec(Spec):
    """Two prompts of equal length, and the site that is exchanged."""

    clean: str = Field(min_length=1, max_length=10_000, description="The prompt.")
    corrupt: str = Field(min_length=1, max_length=10_000, description="Its counterfactual, of as many tokens.")
    correct: str = Field(
        min_length=1, max_length=200, description="Answer of the clean prompt; its first token counts."
    )
    wrong: str = Field(min_length=1, max_length=200, description="Answer of the corrupt one.")
    site: Literal["resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v"] = Field(
        "resid_pre", description="z, q, k, v are exchanged per head, the others per position."
    )
    positions: list[int] | None = Field(
        None, min_length=1, max_length=MAX_TOKENS, description="Of z, q, k, v: where; left out, everywhere."
    )


class ActivationPatching(Experiment[ActivationPatchingSpec]):
    """Maps where the difference between two prompts is."""

    In = ActivationPatchingSpec
    mode = "sync"
    route = "patch"
    card = probe_card(
        "patch",
        "Exchanges activations between two prompts and shows which of them carry the answer.",
        Paper.on_arxiv("Locating and Editing Factual Associations in GPT", 2022, "2202.05262", "NeurIPS"),
        "Effects need not add up to 1.",
        clean="kqzwxm kqzwx",
        corrupt="kqzwxd kqzwx",
        correct="m",
        wrong="d",
    )

    def cost(self, spec: ActivationPatchingSpec, subject: StudiedModel) -> Cost:
        T, places = len(_encode_pair(spec, subject)[0]), _count_places(spec, subject)
        return Cost(2 + subject.layers, 2 * T + subject.layers * places * T)

    def run(self, spec: ActivationPatchingSpec, subject: StudiedModel, progress: Progress) -> Report:
        clean, corrupt = _encode_pair(spec, subject)
        answers = subject.tensor([first_tokens(subject, [spec.correct, spec.wrong])])
        names = [f"{spec.site}.{l}" for l in range(subject.layers)]
        corrupt_run = trace(subject.model, subject.tensor([corrupt]), capture=names, keep=1)
        ids = subject.tensor([clean])
        low = logit_difference(trace(subject.model, ids, keep=1).logits[:, -1], answers)
        high = logit_difference(corrupt_run.logits[:, -1], answers)
        places = _count_places(spec, subject)
        patched = np.full((subject.layers, places), np.nan)
        for layer, name in enumerate(names):
            variants = [[_exchange(spec, name, corrupt_run[name], place)] for place in range(places)]
            for place, one in enumerate(sweep(subject.model, ids, variants, keep=1, batch=places)):
                patched[layer, place] = logit_difference(one.logits[:, -1], answers)
        span = high - low
        effect = (patched - low) / span if abs(span) >= 1e-6 else np.full_like(patched, np.nan)
        tokens = [f"{t} {token.text}" for t, token in enumerate(subject.token_spans(clean))]
        by_head = spec.site in _BY_HEAD
        heads = "head" if places == subject.heads else "key/value head"
        return Report(
            title=f"Patching {spec.site}",
            warnings=[] if abs(span) >= 1e-6 else ["Both prompts have one logit difference: effects are undefined."],
            scalars={
                "logit_diff": Scalar(value=low, unit="logits", note="Clean."),
                "logit_diff_corrupt": Scalar(value=high, unit="logits", note="Corrupt."),
            },
            grids=[
                heat_map(
                    "effect",
                    effect,
                    ("layer", range(subject.layers)),
                    (heads, range(places)) if by_head else ("position", tokens),
                    "How far the corrupt value at this place moves the answer: 0 not at all, 1 all the way.",
                    scale="diverging",
                    text=spec.clean if by_head else None,
                )
            ],
        )


def _exchange(spec: ActivationPatchingSpec, name: str, value: object, place: int) -> Replace:
    if spec.site in _BY_HEAD:
        return Replace(name, value, heads=place, positions=spec.positions)  # type: ignore[arg-type]  # a captured tensor
    return Replace(name, value, positions=place)  # type: ignore[arg-type]  # as above


def _count_places(spec: ActivationPatchingSpec, subject: StudiedModel) -> int:
    if spec.site in {"k", "v"}:
        return subject.model.config.kv_heads
    return subject.heads if spec.site in _BY_HEAD else len(subject.encode(spec.clean, "clean"))


def _encode_pair(spec: ActivationPatchingSpec, subject: StudiedModel) -> tuple[list[int], list[int]]:
    if spec.positions is not None and spec.site not in _BY_HEAD:
        detail = f"positions belongs to z, q, k and v: {spec.site} is exchanged at each position in turn."
        raise InvalidOption(detail, hint="Leave it out.", field="positions")
    clean, corrupt = subject.encode(spec.clean, "clean"), subject.encode(spec.corrupt, "corrupt")
    if len(clean) != len(corrupt):
        detail = f"clean has {len(clean)} tokens and corrupt {len(corrupt)}; they must be equal."
        raise InvalidOption(detail, hint="Exchange words of as many tokens.", field="corrupt")
    if len(clean) > MAX_TOKENS:
        detail = f"clean has {len(clean)} tokens; a pair is patched up to {MAX_TOKENS}."
        raise TooLarge(detail, hint="Use circuits for a task of many prompts.", field="clean")
    return clean, corrupt
