"""RULER-form evaluation on a model in this process: loads the model, evaluates, and closes it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from services.llm_longctx.evaluation.local_run import load_decoder_model
from services.llm_longctx.evaluation.ruler.run import Evaluated
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from shared.settings import settings

__all__ = ["run_at_once", "with_model"]

T = TypeVar("T")


def run_at_once(work: Generator[None, None, T]) -> T:
    """Do work in pieces without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@contextmanager
def with_model(name: str | None) -> Iterator[Evaluated]:
    """The named model, by default the one that the settings name."""
    loaded = load_decoder_model(name or settings().llm_model)
    try:
        yield evaluated_by(loaded.adapter, run_at_once)
    finally:
        loaded.close()


def evaluated_by(adapter: DecoderAdapter, do: Callable[..., T]) -> Evaluated:
    """A served model, and how work on it is done."""
    return Evaluated(adapter.engine, adapter.tokenizer, adapter.plans, adapter.name, do)  # type: ignore[arg-type]
