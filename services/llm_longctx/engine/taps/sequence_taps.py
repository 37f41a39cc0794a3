"""Sequence taps: applies a request's edits while one answer is read and produced, and collects what it captures.

A forward whose tokens are neither edited nor read is not tapped at all. Vectors that are added to the residual stream
stay in the C++ step; everything else is a `TapRecorder` per forward. Knows one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.taps.paged_reads import PagedValues, attention_rows
from services.llm_longctx.engine.taps.request_taps import (
    ActivationCapture,
    AttentionCapture,
    Capture,
    LensCapture,
    PlacedEdit,
    RequestTaps,
)
from services.llm_longctx.engine.taps.token_range import TokenRange
from services.llm_longctx.kernels import ADDABLE_SITES, Addition
from shared.lm.activation_names import SiteScope, parse_site
from shared.lm.attention import Tap
from shared.lm.decoder import Decoder
from shared.lm.host_transfer import take_rows, to_device, to_host
from shared.lm.interventions import Add, Attend, Edit, Replace, Scale
from shared.lm.tap_attention import TapRecorder

LENS_ROWS = 64
"""Rows of logits that the lens holds at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class CapturedTokens:
    """Values of one capture at some tokens.

    Attributes:
        capture: Index of the capture in the request.
        positions: Where the tokens stand.
        tokens: Their ids.
        values: One array per token, float32: an activation [D] or [heads,d]; attention [layers, heads, position + 1];
            of the lens log-probabilities [layers, top].
        ids: Of the lens: token ids [layers, top] per token.
    """

    capture: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    values: tuple[np.ndarray, ...]
    ids: tuple[np.ndarray, ...] = ()


class SequenceTaps:
    """The taps of one answer.

    Attributes:
        request: Edits and captures.
    """

    def __init__(self, request: RequestTaps, model: Decoder) -> None:
        self.request = _move_edits(request, model.output_matrix.device)
        self._model = model
        self._pending: list[CapturedTokens] = []
        self._num_captured = 0  # tokens up to here were read, also if a preempted sequence reads them again
        self._additions = [_to_additions(placed, model) for placed in request.edits]

    def fork(self) -> SequenceTaps:
        """The taps of another answer to the same prompt, which begin with what was captured of it."""
        twin = SequenceTaps(self.request, self._model)
        twin._pending, twin._num_captured = list(self._pending), self._num_captured
        return twin

    def report(self, logits: Tensor, on_capture: Callable[[list[CapturedTokens]], object]) -> None:
        """Report captures since the last call, and check what the edits have made of the logits [V].

        Raises InvalidOption: they are of no use.
        """
        if taken := self._pending:
            self._pending = []
            on_capture(taken)
        if self.request.edits and not bool(to_host(torch.isfinite(logits).all())):
            detail = "Under these interventions the model's activations are not finite any more."
            raise InvalidOption(detail, hint="Choose smaller scales and factors.", field="interventions")

    def is_idle(self, begin: int, end: int) -> bool:
        """Whether nothing of the tokens `begin` … `end`-1 is changed or read."""
        edited = any(placed.tokens.within(begin, end) for placed in self.request.edits)
        return not edited and not self._is_read(begin, end)

    def find_additions(self, position: int, row: int) -> list[Addition] | None:
        """The vectors that are added at a token, if that is all that is to be done there; else None."""
        if self._is_read(position, position + 1):
            return None
        found: list[Addition] = []
        for placed, additions in zip(self.request.edits, self._additions, strict=True):
            if position in placed.tokens:
                if additions is None:
                    return None
                found += [replace(one, row=row) for one in additions]
        return found

    def open(self, state: PagedState, offset: int, tokens: Sequence[int]) -> ForwardTap:
        """The tap of one forward over tokens from `offset` on; its captures are kept when it ends."""
        return ForwardTap(self, state, offset, tokens, self._model)

    def select(self, capture: int, begin: int, end: int) -> list[int]:
        """Tokens of a forward that a capture wants and has not read."""
        return self.request.captures[capture].tokens.within(max(begin, self._num_captured), end)

    def keep(self, captured: Sequence[CapturedTokens], end: int) -> None:
        """Keep what a forward up to token `end` has captured."""
        self._pending += captured
        self._num_captured = max(self._num_captured, end)

    def _is_read(self, begin: int, end: int) -> bool:
        return any(self.select(i, begin, end) for i in range(len(self.request.captures)))


class ForwardTap:
    """The tap of one forward of one sequence: a chunk of its prompt, or a step."""

    def __init__(
        self, taps: SequenceTaps, state: PagedState, offset: int, tokens: Sequence[int], model: Decoder
    ) -> None:
        self._taps, self._state, self._model, self._tokens = taps, state, model, tokens
        self._offset, self._end = offset, offset + len(tokens)
        extent = SiteScope(1, len(tokens), offset, more=True, config=model.config)
        captures = taps.request.captures
        self._wanted = {i: at for i in range(len(captures)) if (at := taps.select(i, offset, self._end))}
        edits = [edit for one in taps.request.edits for edit in _place(one, offset, self._end)]
        self._recorder = TapRecorder(extent, self._list_sites(), [(edit, None) for edit in edits], None, grad=False)
        self._values = PagedValues(state, offset)
        self._recorder.cache = self._values
        self._overridden = frozenset(edit.layer for edit in edits if isinstance(edit, Attend))
        self._attention = {i: capture for i in self._wanted if isinstance(capture := captures[i], AttentionCapture)}
        self._watched = frozenset(layer for capture in self._attention.values() for layer in capture.layers)
        self._q: Tensor | None = None
        self._rows: dict[tuple[int, int], Tensor] = {}

    @property
    def tapped(self) -> frozenset[tuple[str, int]]:
        """Names and layers of the sites that it has something to do at."""
        own = {("v", layer) for layer in self._overridden}
        return self._recorder.tapped | own | {(site, layer) for layer in self._watched for site in ("q_rot", "k_rot")}

    def __call__(self, site: str, layer: int, x: Tensor) -> Tensor:
        """Edit and capture; see `shared.lm.attention.Tap`."""
        x = self._recorder(site, layer, x)
        if site == "v" and layer in self._overridden:
            self._values.gather(layer, x)
        if site == "q_rot" and layer in self._watched:
            self._q = x
        if site == "k_rot" and layer in self._watched and self._q is not None:
            for i, capture in self._attention.items():
                if layer in capture.layers:
                    self._rows[i, layer] = attention_rows(
                        self._state, layer, self._q, x, self._offset, self._wanted[i], capture.heads
                    )
        return x

    def end(self) -> None:
        """The forward is over: keep what it captured."""
        self._taps.keep([self._gather(i, positions) for i, positions in self._wanted.items()], self._end)

    def _list_sites(self) -> set[str]:
        sites: set[str] = set()
        for i in self._wanted:
            capture = self._taps.request.captures[i]
            if isinstance(capture, ActivationCapture):
                sites.add(capture.site)
            elif isinstance(capture, LensCapture):
                sites |= {f"resid_post.{layer}" for layer in capture.layers}
        return sites

    def _gather(self, i: int, positions: list[int]) -> CapturedTokens:
        capture, at = self._taps.request.captures[i], [position - self._offset for position in positions]
        values, ids = self._read(i, capture, at)
        return CapturedTokens(i, tuple(positions), tuple(self._tokens[t] for t in at), tuple(values), tuple(ids))

    def _read(self, i: int, capture: Capture, at: list[int]) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
        """Values per token, and of the lens ids."""
        if isinstance(capture, AttentionCapture):
            rows = to_host(torch.stack([self._rows[i, layer] for layer in capture.layers], 1)).numpy()
            return [row[..., : self._offset + t + 1] for row, t in zip(rows, at, strict=True)], ()
        captured = self._recorder.captured
        if isinstance(capture, ActivationCapture):
            return list(to_host(take_rows(captured[capture.site][0], at).float()).numpy()), ()
        streams = torch.stack([take_rows(captured[f"resid_post.{layer}"][0], at) for layer in capture.layers], 1)
        logprobs, ids = _read_lens(self._model, streams, capture.top)
        return list(logprobs), list(ids)


def tap_rows(rows: Sequence[ForwardTap | None]) -> Tap:
    """The tap of a step of several sequences, of which some are tapped: each sees its own row."""

    def tap(site: str, layer: int, x: Tensor) -> Tensor:
        for row, forward in enumerate(rows):
            if forward is None or (site, layer) not in forward.tapped:
                continue
            mine = x[row : row + 1]
            if (changed := forward(site, layer, mine)) is not mine:
                x = torch.cat((x[:row], changed.to(x.dtype), x[row + 1 :]))
        return x

    return tap


def _read_lens(model: Decoder, streams: Tensor, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and ids of the likeliest tokens [n, layers, top] of residual streams [n, layers, D]."""
    best = [
        model.read_logits(rows.to(model.output_matrix.dtype)).float().log_softmax(-1).topk(top)
        for rows in torch.split(streams.flatten(0, 1), LENS_ROWS)
    ]
    shape = (*streams.shape[:2], top)
    values = to_host(torch.cat([one.values for one in best]).view(shape)).numpy()
    return values, to_host(torch.cat([one.indices for one in best]).view(shape)).numpy()


def _place(placed: PlacedEdit, begin: int, end: int) -> Iterator[Edit]:
    """The edit for the tokens of one forward; none where it changes none of them."""
    at = placed.tokens.within(begin, end)
    if not at:
        return
    if isinstance(placed.edit, Replace) and placed.edit.value.shape[1] > 1:
        yield replace(placed.edit, value=_spread_rows(placed.edit.value, placed.tokens, begin, end), positions=at)
        return
    if not isinstance(placed.edit, Attend):
        yield replace(placed.edit, positions=at)
        return
    asked = list(placed.edit.keys) if not isinstance(placed.edit.keys, int | None) else []
    keys = [key for key in asked if key < end]
    weights = torch.as_tensor(placed.edit.weights, device="cpu")[[key < end for key in asked]]
    visible = torch.tensor(keys, device="cpu")[None] <= torch.tensor(at, device="cpu")[:, None]
    yield replace(placed.edit, query=at, keys=keys, weights=weights * visible)


def _spread_rows(rows: Tensor, tokens: TokenRange, begin: int, end: int) -> Tensor:
    """One row per listed token [1,n,…], for the tokens of one forward [1,T,…]; zero where none is listed."""
    inside = [(i, at - begin) for i, at in enumerate(tokens.listed or ()) if begin <= at < end]
    spread = rows.new_zeros(1, end - begin, *rows.shape[2:])
    spread[0, [at for _, at in inside]] = rows[0, [i for i, _ in inside]]
    return spread


def _move_edits(request: RequestTaps, device: torch.device) -> RequestTaps:
    """The request with what it adds and multiplies by where the model lies: sent once, not in every step."""
    if device.type == "cpu":
        return request
    moved = []
    for placed in request.edits:
        edit = placed.edit
        if isinstance(edit, Add | Replace):
            edit = replace(edit, value=to_device(edit.value, device))
        elif isinstance(edit, Scale) and isinstance(edit.factor, Tensor):
            edit = replace(edit, factor=to_device(edit.factor, device))
        moved.append(replace(placed, edit=edit))
    return replace(request, edits=tuple(moved))


def _to_additions(placed: PlacedEdit, model: Decoder) -> list[Addition] | None:
    """The edit as an addition to the residual stream; None where it is none."""
    if not isinstance(placed.edit, Add):
        return None
    site = parse_site(placed.edit.site, model.config)
    if site.name not in ADDABLE_SITES:
        return None
    return [Addition(0, site.name, site.layer, placed.edit.value.float().reshape(-1).contiguous())]
