"""Savings of reading only the answer's rows and of reusing lower layers: retrieval-head detection and path patching.

Detection is compared with the published protocol (50 greedy steps, each one's attention read) on transformers with
the same weights, dtype and needle cells, and with 50 such steps of our own decoder. The slow ones do one cell of the
row of depths, ours does the whole row of ten, as a study does: what its cells begin with is read once. Path patching is
compared with its definition, two whole forwards per sender, on some senders of every depth; results must be equal.
The clock is the processor's, on one thread.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from fovea_circuits.circuit_tasks import group_by_length, make_indirect_objects
from fovea_circuits.patching import logit_difference, path_patch
from loadtests.bench.result import Row, Table, row
from loadtests.bench.turns import milliseconds, threads
from services.interpretability.attention.pattern_capture import visit_patterns
from services.interpretability.attention.retrieval_score import score_copies, top_positions
from services.interpretability.core.model_registry import ModelRegistry
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.retrieval_heads.report import MIN_RETRIEVAL_SCORE
from services.interpretability.generation.forced_decoding import _decode_step, trace_known_answer
from services.interpretability.generation.prefix_reader import PrefixReader
from shared.lm.builders import llama
from shared.lm.bundled_models import SMOLLM2, bundled_gguf
from shared.lm.gguf_file import unpack
from shared.lm.niah_prompts import NEEDLES, Prompt, build_needle_prompt, even_depths
from shared.lm.taps import Replace, trace

PUBLISHED = "transformers, eager, 50 steps"
OWN_STEPS = "our decoder, 50 steps"
FORCED = "ours, teacher-forced, a row of depths"
WHOLE = "two whole forwards per sender"
PATCHED = "ours: lower layers reused, heads batched"

DTYPES = ("float32", "bfloat16")
STEPS = 50
PROMPTS = 16
LENGTH = 700
LONG = 4096


def measure(rounds: int = 3, count: int = 1) -> Table:
    """Alternate the contenders of each group; medians over rounds of one call, at most three."""
    rounds = min(rounds, 3 * count)
    with threads(1), tempfile.TemporaryDirectory() as folder:
        subjects = {d: ModelRegistry(Path(folder), Path("none"), SMOLLM2, d, "cpu").get(SMOLLM2) for d in DTYPES}
        cells = [
            build_needle_prompt(subjects["float32"].tokenizer, NEEDLES[0], LENGTH, depth, seed=1)
            for depth in even_depths()
        ]
        calls = {d: _detection(subject, cells, Path(folder)) for d, subject in subjects.items()}
        maps = [_scores(subject, cells) for subject in subjects.values()]  # and warms our own contender
        contenders = {f"{name}, {d}": call for d in DTYPES for name, call in calls[d].items()}
        detection = milliseconds(contenders, rounds, 1, time.process_time, warm=False)
        for d in DTYPES:
            detection[f"{FORCED}, {d}"] = [value / len(cells) for value in detection[f"{FORCED}, {d}"]]
        patching, apart = _patching(subjects["float32"], rounds)
    middle = {name: statistics.median(values) for name, values in (detection | patching).items()}
    rows: list[Row] = [
        row(name, "ms / prompt", values, middle[f"{PUBLISHED}, {name.rpartition(', ')[2]}"], "ratio in its dtype")
        for name, values in detection.items()
    ]
    rows += [
        row(name, "ms / sender", values, middle[WHOLE], "ratio to two forwards") for name, values in patching.items()
    ]
    times = {
        f"{what}, times ours, {d} (at least)": (middle[f"{name}, {d}"] / middle[f"{FORCED}, {d}"], wanted)
        for what, name, wanted in (("published protocol", PUBLISHED, 5.0), ("50 steps of our own", OWN_STEPS, 2.0))
        for d in DTYPES
    }
    return Table(
        suite="interpretability",
        title="Finding heads on SmolLM2-135M-Instruct",
        how=f"CPU time of one thread; detection on needle prompts of {len(cells[0].ids)} tokens at {len(cells)} "
        f"depths; path patching in float32 to the final residual at END on indirect objects, {PROMPTS} prompts",
        baseline=PUBLISHED,
        rows=rows,
        targets={
            **times,
            "rank correlation of scores in the two dtypes, heads that copy (at least)": (_alike(*maps), 0.9),
            "retrieval heads of both dtypes, of those of either (at least)": (_shared(*maps), 0.8),
            "two forwards per sender, times ours (at least)": (middle[WHOLE] / middle[PATCHED], 3.5),
            "difference of patched logit differences (at most)": (apart, 1e-3),
            "largest piece of a pattern of 4,096 tokens, share of T×T (at most)": (_largest_piece(), 0.05),
        },
    )


def _scores(subject: StudiedModel, cells: list[Prompt]) -> np.ndarray:
    """Mean retrieval score of the cells [L,H]."""
    reader, found = PrefixReader(subject), []
    for cell in cells:
        assert cell.span is not None  # noqa: S101  # our own needles stand where they were put
        found.append(score_copies(trace_known_answer(reader, cell).top_positions, cell.ids, cell.answer_ids, cell.span))
    mean: np.ndarray = np.mean(found, 0)
    return mean


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation over the heads that copied at all in either."""
    copied = (one > 0) | (other > 0)
    return float(spearmanr(one[copied], other[copied]).statistic)


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    return float(
        ((one >= MIN_RETRIEVAL_SCORE) & (other >= MIN_RETRIEVAL_SCORE)).sum()
        / ((one >= MIN_RETRIEVAL_SCORE) | (other >= MIN_RETRIEVAL_SCORE)).sum()
    )


def _detection(subject: StudiedModel, cells: list[Prompt], folder: Path) -> dict[str, Callable[[], Any]]:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  # slow to import, and the baseline only

    file = bundled_gguf()
    assert file is not None  # noqa: S101  # the registry has just read it
    theirs = AutoModelForCausalLM.from_pretrained(
        unpack(file, folder, subject.model.output_matrix.dtype),
        dtype=subject.model.output_matrix.dtype,
        attn_implementation="eager",
        local_files_only=True,
    ).eval()
    prompt = cells[len(cells) // 2]
    ids = subject.tensor([prompt.ids])

    @torch.no_grad()
    def published(steps: int = STEPS) -> None:
        out = theirs(ids[:, :-1], use_cache=True, logits_to_keep=1)
        cache, token = out.past_key_values, ids[:, -1:]
        for _ in range(steps):
            out = theirs(token, past_key_values=cache, use_cache=True, output_attentions=True)
            for rows in out.attentions:
                top_positions(rows[0].float().numpy())
            cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def own(steps: int = STEPS) -> None:
        cache = subject.model.new_cache(room=len(prompt.ids) + STEPS)
        subject.model(ids[:, :-1], cache=cache, keep=1)
        token = prompt.ids[-1]
        for _ in range(steps):
            token, _looked = _decode_step(subject, cache, token, 1, [])

    def ours() -> None:
        reader = PrefixReader(subject)
        for cell in cells:
            trace_known_answer(reader, cell)

    published(1)
    own(1)
    return {PUBLISHED: published, OWN_STEPS: own, FORCED: ours}


def _patching(subject: StudiedModel, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Milliseconds per sender of both ways, and how far apart their results are."""
    batch = max(group_by_length(make_indirect_objects(subject, 8 * PROMPTS)), key=lambda b: len(b.cases))
    clean, corrupt, answers = (subject.tensor(rows[:PROMPTS]) for rows in (batch.clean, batch.corrupt, batch.answers))
    layers = range(subject.layers)
    names = [f"z.{l}" for l in layers]
    runs = [trace(subject.model, ids, capture=names, keep=1) for ids in (clean, corrupt)]
    senders = [(layer, layer % subject.heads) for layer in range(1, subject.layers, 9)]

    def one(sender: tuple[int, int]) -> float:
        edits: list[Any] = [Replace(name, runs[0][name], positions=-1) for name in names]
        edits.append(Replace(f"z.{sender[0]}", runs[1][f"z.{sender[0]}"], heads=sender[1], positions=-1))
        recorded = trace(subject.model, clean, edits=edits, capture=["final"], keep=1)
        inserted = [Replace("final", recorded["final"], positions=-1)]
        return logit_difference(trace(subject.model, clean, edits=inserted, keep=1).logits[:, -1], answers)

    def whole() -> list[float]:
        return [one(sender) for sender in senders]

    def ours() -> np.ndarray:
        return path_patch(subject.model, clean, corrupt, answers, positions=-1).patched

    found = ours()
    apart = max(abs(value - found[sender]) for value, sender in zip(whole(), senders, strict=True))
    # Told per sender, so that a few of the slow kind stand for all.
    pieces = {WHOLE: len(senders), PATCHED: subject.layers * subject.heads}
    timed = milliseconds({WHOLE: whole, PATCHED: ours}, rounds, 1, time.process_time, warm=False)
    return {name: [value / pieces[name] for value in values] for name, values in timed.items()}, float(apart)


def _largest_piece() -> float:
    """Cells of the largest pattern tensor that a long prompt's reader ever sees, of T×T per head."""
    torch.manual_seed(0)
    model = llama(vocab=256, width=32, layers=1, heads=2, kv_heads=1, hidden=64, positions=LONG).eval()
    seen: list[int] = []
    visit_patterns(model, torch.randint(256, (1, LONG)), lambda _layer, _start, rows: seen.append(rows[0, 0].numel()))
    return max(seen) / LONG**2
