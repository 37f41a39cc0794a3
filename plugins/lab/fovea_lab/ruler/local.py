"""RULER-form evaluation of a model in this process: loads the model, evaluates or exports samples, and closes it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fovea_lab.local_run import open_adapter, parse_options, show_progress
from fovea_lab.ruler.peers import read_predictions
from fovea_lab.ruler.report import RulerReport
from fovea_lab.ruler.run import EvaluatedModel, RulerSpec, export_samples, run_ruler
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter

T = TypeVar("T")


def evaluate(
    model: str | None,
    options: Mapping[str, Any],
    *,
    qa: Path | None,
    corpus: str | None,
    store: Path | None,
    peers: Iterable[Path],
) -> RulerReport:
    """Evaluate the named model, and score predictions of peers on the same samples; see `run_ruler`.

    Raises:
        InvalidOption: An option is out of range, or the model has attention of its own.
    """
    spec = parse_options(RulerSpec, options)
    with open_adapter(model) as adapter, show_progress("ruler") as progress:
        on = _wrap(adapter)
        extra = [
            one for path in peers for one in read_predictions(path, lambda ids: on.tokenizer.decode(ids, special=False))
        ]
        return run_ruler(on, spec, progress=progress, qa=qa, corpus=corpus, store=store, extra=extra)


def write_samples(
    model: str | None, options: Mapping[str, Any], out: Path, *, qa: Path | None, corpus: str | None
) -> None:
    """Write samples with their tokens as JSONL, for peers; raises as `evaluate`."""
    spec = parse_options(RulerSpec, options)
    with open_adapter(model) as adapter:
        rows = export_samples(_wrap(adapter), spec, qa=qa, corpus=corpus)
        out.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def run_at_once(work: Generator[None, None, T]) -> T:
    """Do work in pieces without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def _wrap(adapter: DecoderAdapter) -> EvaluatedModel:
    return EvaluatedModel(adapter.engine, adapter.tokenizer, adapter.plans, adapter.name, run_at_once)
