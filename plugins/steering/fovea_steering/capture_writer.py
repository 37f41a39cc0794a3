"""Capture writer: from what the engine captured to the protocol's form, inline while it is little, a file beyond.

One per HTTP request; each of its answers has a share of its own. Knows arrays and the protocol's forms.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from fovea.api.interventions import Captured, LensToken
from fovea_steering.capture_store import CaptureStore
from services.llm_longctx.engine.taps import ActivationCapture, AttentionCapture, Capture, CapturedTokens, LensCapture
from services.llm_longctx.serving.answer_text import OutputChunk
from shared.lm.tokenizer import Tokenizer

INLINE_NUMBERS = 2**16
"""Numbers that one answer has inline; what comes beyond is only in the file, with all before it."""


class CaptureWriter:
    """Writes the captures of the answers to one request."""

    def __init__(self, tokenizer: Tokenizer, store: CaptureStore | None, weights: str) -> None:
        """Write with the names of tokens; without a store everything is inline."""
        self._tokenizer, self._store, self._weights = tokenizer, store, weights
        self._captures: Sequence[Capture] = ()
        self._prompts: list[int] = []
        self._taken: dict[int, list[CapturedTokens]] = {}
        self._numbers: dict[int, int] = {}

    def add_prompt(self, captures: Sequence[Capture], tokens: int, answers: int) -> None:
        """Expect the captures of so many answers to a prompt of so many tokens."""
        self._captures = captures
        self._prompts += [tokens] * answers

    def write(self, piece: OutputChunk) -> list[Captured]:
        """Write new captures of an answer, inline until it has outgrown that; at its end where its file is."""
        index, news = piece.index, piece.captured
        self._taken.setdefault(index, []).extend(news)
        self._numbers[index] = self._numbers.get(index, 0) + sum(v.size for one in news for v in one.values)
        is_large = self._store is not None and self._numbers[index] > INLINE_NUMBERS
        inline = [] if is_large else [self._to_wire(one) for one in news]
        return inline if piece.reason is None else [*inline, *self._store_answer(index, is_large=is_large)]

    def _store_answer(self, index: int, *, is_large: bool) -> list[Captured]:
        """Where the file of an ended answer is, for each capture; empty where all was inline and nothing is kept."""
        taken = self._taken.pop(index)
        is_kept = any(isinstance(one, ActivationCapture) and one.keep for one in self._captures)
        if self._store is None or not taken or not (is_large or is_kept):
            return []
        name = self._store.add(_to_npz(taken, self._captures, self._prompts[index], self._weights))
        found = []
        for i in sorted({one.capture for one in taken}):
            shown = [one for one in taken if one.capture == i and is_large]
            positions = [at for one in shown for at in one.positions]
            texts = [self._tokenizer.token_text(token) for one in shown for token in one.tokens]
            url = {"url": f"/v1/captures/{name}"} if is_large else {}
            found.append(Captured(capture=i, positions=positions, tokens=texts, id=name, **url, **self._facts(i)))
        return found

    def _facts(self, i: int) -> dict[str, Any]:
        capture = self._captures[i]
        if isinstance(capture, ActivationCapture):
            return {"type": "activation", "site": capture.site}
        if isinstance(capture, AttentionCapture):
            return {"type": "attention", "layers": list(capture.layers), "heads": list(capture.heads)}
        return {"type": "logit_lens", "layers": list(capture.layers)}

    def _to_wire(self, one: CapturedTokens) -> Captured:
        text = self._tokenizer.token_text
        facts = {**self._facts(one.capture), "capture": one.capture, "positions": list(one.positions)}
        tokens = [text(token) for token in one.tokens]
        if not one.ids:
            return Captured(**facts, tokens=tokens, values=[_round(value) for value in one.values])
        lens = [
            [
                [LensToken(token=text(int(i)), id=int(i), logprob=_round(v)) for i, v in zip(*layer, strict=True)]
                for layer in zip(ids, values, strict=True)
            ]
            for ids, values in zip(one.ids, one.values, strict=True)
        ]
        return Captured(**facts, tokens=tokens, lens=lens)


def _round(value: Any) -> Any:
    """As nested lists of numbers with seven digits, which tell float32 apart."""
    if np.ndim(value):
        return [_round(one) for one in value]
    return float(f"{float(value):.7g}")


def _to_npz(taken: Sequence[CapturedTokens], captures: Sequence[Capture], prompt: int, weights: str) -> bytes:
    """Arrays `<capture>.<name>`; attention rows [n, layers, heads, keys] are zero behind their own token."""
    arrays = {"prompt": np.array(prompt), "weights": np.array(weights[:16])}
    for i, capture in enumerate(captures):
        mine = [one for one in taken if one.capture == i]
        values = [value for one in mine for value in one.values]
        if not values:
            continue
        arrays[f"{i}.positions"] = np.array([at for one in mine for at in one.positions], np.int64)
        arrays[f"{i}.tokens"] = np.array([token for one in mine for token in one.tokens], np.int64)
        if isinstance(capture, ActivationCapture):
            arrays[f"{i}.site"] = np.array(capture.site)
        if isinstance(capture, AttentionCapture):
            arrays[f"{i}.heads"] = np.array(capture.heads, np.int64)
        if isinstance(capture, LensCapture):
            arrays[f"{i}.ids"] = np.stack([ids for one in mine for ids in one.ids])
        if not isinstance(capture, ActivationCapture):
            arrays[f"{i}.layers"] = np.array(capture.layers, np.int64)
        arrays[f"{i}.{'logprobs' if isinstance(capture, LensCapture) else 'values'}"] = _stack(values)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy types its keywords as one flag
    return file.getvalue()


def _stack(values: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays that may differ in their last axis; zero behind the shorter ones."""
    stacked = np.zeros((len(values), *values[0].shape[:-1], max(value.shape[-1] for value in values)), np.float32)
    for row, value in zip(stacked, values, strict=True):
        row[..., : value.shape[-1]] = value
    return stacked
