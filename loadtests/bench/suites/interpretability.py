"""What reading only the answer's rows, and reusing lower layers, saves: retrieval-head detection and path patching.

Detection is compared with the published protocol (50 greedy steps, each one's attention read) on transformers with
the same weights and needle cells, and with 50 such steps of our own decoder. The slow ones do one cell of the row of
depths, ours does the whole row of ten, as a study does: what its cells begin with is read once. Path patching is
compared with its definition, two whole forwards per sender, on some senders of every depth; results must be equal.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loadtests.bench.result import Row, Table, row
from loadtests.bench.turns import milliseconds
from services.interpretability.answering import _step, force
from services.interpretability.patching import logit_difference, path_patch
from services.interpretability.reader import Reader
from services.interpretability.retrieval import winners
from services.interpretability.shelf import Shelf
from services.interpretability.subject import Subject
from services.interpretability.tasks import batches, indirect_objects
from services.interpretability.watching import watch
from shared.lm.gguf_file import unpack
from shared.lm.needle import NEEDLES, Prompt, depths, needle
from shared.lm.networks import llama
from shared.lm.shipped import SMOLLM2, shipped_gguf
from shared.lm.taps import Replace, trace

PUBLISHED = "transformers, eager, 50 steps"
OWN_STEPS = "our decoder, 50 steps"
FORCED = "ours, teacher-forced, a row of depths"
WHOLE = "two whole forwards per sender"
PATCHED = "ours: lower layers reused, heads batched"

STEPS = 50
PROMPTS = 16
LENGTH = 700
LONG = 4096


def measure(rounds: int = 3, count: int = 1) -> Table:
    """Alternate the contenders of each pair; medians over rounds of one call, at most three."""
    rounds = min(rounds, 3 * count)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            subject = Shelf(Path(folder), Path("none"), SMOLLM2, "float32", "cpu").subject(SMOLLM2)
            cells = [needle(subject.tokenizer, NEEDLES[0], LENGTH, depth, seed=1) for depth in depths()]
            detection = milliseconds(_detection(subject, cells, Path(folder)), rounds, 1)
            detection[FORCED] = [value / len(cells) for value in detection[FORCED]]
            calls, pieces, apart = _patching(subject)
            timed = milliseconds(calls, rounds, 1)
            patching = {name: [value / pieces[name] for value in values] for name, values in timed.items()}
    finally:
        torch.set_num_threads(threads)
    base, whole = statistics.median(detection[PUBLISHED]), statistics.median(patching[WHOLE])
    rows: list[Row] = [row(name, "ms / prompt", values, base) for name, values in detection.items()]
    rows += [row(name, "ms / sender", values, whole, "ratio to two forwards") for name, values in patching.items()]
    forced = statistics.median(detection[FORCED])
    return Table(
        suite="interpretability",
        title="Finding heads on SmolLM2-135M-Instruct",
        how=f"float32, one thread; detection on needle prompts of {len(cells[0].ids)} tokens at {len(cells)} depths; "
        f"path patching to the final residual at END on indirect objects, {PROMPTS} prompts",
        baseline=PUBLISHED,
        rows=rows,
        targets={
            "published protocol, times ours (at least)": (base / forced, 5.0),
            "50 steps of our own, times ours (at least)": (statistics.median(detection[OWN_STEPS]) / forced, 2.0),
            "two forwards per sender, times ours (at least)": (whole / statistics.median(patching[PATCHED]), 3.5),
            "difference of patched logit differences (at most)": (apart, 1e-3),
            "largest piece of a pattern of 4,096 tokens, share of T×T (at most)": (_largest_piece(), 0.05),
        },
    )


def _detection(subject: Subject, cells: list[Prompt], folder: Path) -> dict[str, Callable[[], Any]]:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  # slow to import, and the baseline only

    file = shipped_gguf()
    assert file is not None  # noqa: S101  # the shelf has just read it
    theirs = AutoModelForCausalLM.from_pretrained(
        unpack(file, folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    prompt = cells[len(cells) // 2]
    ids = subject.tensor([prompt.ids])

    @torch.no_grad()
    def published() -> None:
        out = theirs(ids[:, :-1], use_cache=True, logits_to_keep=1)
        cache, token = out.past_key_values, ids[:, -1:]
        for _ in range(STEPS):
            out = theirs(token, past_key_values=cache, use_cache=True, output_attentions=True)
            for rows in out.attentions:
                winners(rows[0].numpy())
            cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def own() -> None:
        cache = subject.model.new_cache(room=len(prompt.ids) + STEPS)
        subject.model(ids[:, :-1], cache=cache, keep=1)
        token = prompt.ids[-1]
        for _ in range(STEPS):
            token, _looked = _step(subject, cache, token, 1, [])

    def ours() -> None:
        reader = Reader(subject)
        for cell in cells:
            force(reader, cell)

    return {PUBLISHED: published, OWN_STEPS: own, FORCED: ours}


def _patching(subject: Subject) -> tuple[dict[str, Callable[[], Any]], dict[str, int], float]:
    """Both ways, how many senders each does, and how far apart their results are."""
    batch = max(batches(indirect_objects(subject, 8 * PROMPTS)), key=lambda b: len(b.cases))
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
    return {WHOLE: whole, PATCHED: ours}, pieces, float(apart)


def _largest_piece() -> float:
    """Cells of the largest pattern tensor that a long prompt's reader ever sees, of T×T per head."""
    torch.manual_seed(0)
    model = llama(vocab=256, width=32, layers=1, heads=2, kv_heads=1, hidden=64, positions=LONG).eval()
    seen: list[int] = []
    watch(model, torch.randint(256, (1, LONG)), lambda _layer, _start, rows: seen.append(rows[0, 0].numel()))
    return max(seen) / LONG**2
