"""From the protocol's `interventions` and `capture` to the engine's taps: names resolved, widths and sizes checked.

Every refusal names the field, as `interventions[0].vector`. Knows sites, vectors and limits; knows no engine.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from services.llm_longctx.engine.taps import (
    ActivationCapture,
    AttentionCapture,
    Capture,
    CaptureSize,
    LensCapture,
    PlacedEdit,
    RequestTaps,
    TokenRange,
)
from services.llm_longctx.serving.steering.capture_writer import INLINE_NUMBERS
from services.llm_longctx.serving.steering.vector_store import VectorStore
from shared.api import interventions as wire
from shared.api.text import GenerationOptions
from shared.errors import InvalidOption, in_field
from shared.lm.activation_names import WEIGHT_SITES, Site, parse_layer, parse_site, resolve_indices
from shared.lm.config import DecoderConfig
from shared.lm.interventions import Add, Attend, Scale, Uniform

MAX_CAPTURED = 2**24
"""Numbers that the captures of one request may come to, answers of the longest length: 64 MiB in float32."""

MAX_PROMPT_ROWS = 1024
"""Residual streams of prompts that the lens of one request reads: each is a product with the output matrix."""

MAX_STEP_ROWS = 128
"""Those of one decode step, over all answers: everybody in the batch waits for them."""

MAX_ROWS = 2**15
"""Those of prompts and answers together: 1,092 tokens through 30 layers."""

MAX_STRENGTH = 10_000.0
"""Largest entry of a vector times its scale: beyond it float16 overflows."""


class TapBuilder:
    """Builds the taps of requests to one model.

    Args:
        config: Its sizes.
        weights: Digest of its weights, to which stored vectors belong.
        vectors: The tenant's.
        has_files: Whether captures that are too large for an answer have a place.
    """

    def __init__(self, config: DecoderConfig, weights: str, vectors: VectorStore, *, has_files: bool) -> None:
        self._config, self._weights, self._vectors, self._has_files = config, weights, vectors, has_files

    def build(self, options: GenerationOptions, prompt: int, max_tokens: int) -> RequestTaps | None:
        """The taps of a request with so many tokens; None where it asks for none.

        Raises:
            InvalidOption: A site, layer, head or position that does not exist, a wrong width, too strong or too much.
            NotFound: A vector that does not exist.
        """
        if not options.interventions and not options.capture:
            return None
        edits: list[PlacedEdit] = []
        for i, one in enumerate(options.interventions or ()):
            with in_field(f"interventions[{i}]"):
                edits += self._build_edits(one, prompt)
        captures: list[Capture] = []
        for i, asked in enumerate(options.capture or ()):
            with in_field(f"capture[{i}]"):
                captures.append(self._build_capture(asked, prompt))
        size = self._measure(captures, prompt, max_tokens, options.n)
        check_captured(size)
        if not self._has_files and (each := size.numbers // options.n) > INLINE_NUMBERS:
            detail = f"Captures of {each:,} numbers need an object store; without one an answer has {INLINE_NUMBERS:,}."
            hint = "Name fewer layers, heads or positions, or set max_tokens."
            raise InvalidOption(detail, hint=hint, field="capture")
        return RequestTaps(tuple(edits), tuple(captures), size)

    def _build_edits(self, given: wire.Intervention, prompt: int) -> list[PlacedEdit]:
        tokens, config = TokenRange.of(given.positions, prompt, self._config.positions), self._config
        if isinstance(given, wire.AddIntervention):
            return [PlacedEdit(Add(site, value, given.heads), tokens) for site, value in self._find_vectors(given)]
        if isinstance(given, wire.ScaleIntervention):
            site = self._parse_site(given.site)
            return [PlacedEdit(Scale(given.site, given.factor, self._check_heads(given.heads, site)), tokens)]
        layer = parse_layer(given.layer, config, f"layer {given.layer}")
        if isinstance(given, wire.UniformIntervention):
            return [PlacedEdit(Uniform(layer, self._check_heads(given.heads, Site("q", layer))), tokens)]
        heads = self._check_heads(given.heads, Site("z", layer))
        keys, weights = _read_weights(given, prompt, config)
        return [PlacedEdit(Attend(layer, heads or [], [], keys, torch.tensor(weights, device="cpu")), tokens)]

    def _find_vectors(self, given: wire.AddIntervention) -> list[tuple[str, Tensor]]:
        """What is added, as [1,1,D] or [1,1,heads,d], by site."""
        if isinstance(given.vector, str):
            found = self._read_stored(given.vector, given.site)
        elif given.site is None:
            raise InvalidOption("A vector of numbers needs a site, such as resid_post.14.")
        else:
            found = [(given.site, torch.tensor(given.vector, device="cpu"))]
        return [(site, self._shape(self._parse_site(site), value * given.scale, given.heads)) for site, value in found]

    def _read_stored(self, name: str, site: str | None) -> list[tuple[str, Tensor]]:
        facts = self._vectors.get(name)
        if facts.weights != self._weights[:16]:
            detail = f"The steering vector {facts.id} belongs to other weights ({facts.model})."
            raise InvalidOption(detail, hint="Make one for this model with POST /v1/steering-vectors.")
        directions = self._vectors.read(facts)
        if site is None:
            return [(f"resid_post.{layer}", value) for layer, value in directions.items()]
        layer = self._parse_site(site).layer
        if layer not in directions:
            known = ", ".join(map(str, directions))
            raise InvalidOption(f"{facts.id} has no vector for {site}; it has layers {known}.")
        return [(site, directions[layer])]

    def _shape(self, site: Site, value: Tensor, heads: list[int] | None) -> Tensor:
        self._check_heads(heads, site)
        if not (strongest := float(value.abs().max())) <= MAX_STRENGTH:  # 0 times infinity is neither
            detail = (
                f"The vector's largest entry times its scale is {strongest:.3g}; at most {MAX_STRENGTH:g} is added."
            )
            raise InvalidOption(detail, hint="Choose a smaller scale.")
        width = self._config.head_dim if site.axes.endswith("d") else self._config.width
        if len(value) != width:
            of = "a head of this site" if site.axes.endswith("d") else "this site"
            raise InvalidOption(f"The vector has {len(value)} numbers; {of} has {width}.")
        return value.view(1, 1, 1, width) if site.axes.endswith("d") else value.view(1, 1, width)

    def _build_capture(self, given: wire.Capture, prompt: int) -> Capture:
        tokens = TokenRange.of(given.positions, prompt, self._config.positions)
        if isinstance(given, wire.CaptureActivation):
            self._parse_site(given.site)
            return ActivationCapture(given.site, tokens)
        asked = range(self._config.layers) if given.layers is None else given.layers
        layers = tuple(dict.fromkeys(parse_layer(layer, self._config, f"layer {layer}") for layer in asked))
        if isinstance(given, wire.CaptureLogitLens):
            return LensCapture(layers, given.top, tokens)
        heads = self._check_heads(given.heads, Site("q", 0))
        return AttentionCapture(layers, tuple(range(self._config.heads) if heads is None else heads), tokens)

    def _measure(self, captures: list[Capture], prompt: int, max_tokens: int, n: int) -> CaptureSize:
        """What the captures may come to, answers of the longest length."""
        size, steps = CaptureSize(), Counter[int]()
        end = prompt + max(max_tokens - 1, 0)  # the last token is drawn, but never fed
        for capture in captures:
            at = capture.tokens.within(0, end)
            numbers = [capture.count(position, self._config) for position in at]
            # In a file all rows of attention are as long as the longest: of tokens in a row, that is twice as much.
            size += CaptureSize(n * max(sum(numbers), len(numbers) * max(numbers, default=0) // 2))
            if isinstance(capture, LensCapture):
                layers, read = len(capture.layers), len(capture.tokens.within(0, prompt))
                size += CaptureSize(prompt_rows=layers * read, rows=layers * (read + n * (len(at) - read)))
                steps.update(dict.fromkeys(at[read:], layers))
        return size + CaptureSize(step_rows=n * max(steps.values(), default=0))

    def _parse_site(self, text: str) -> Site:
        site = parse_site(text, self._config)
        if site.name in WEIGHT_SITES:
            detail = f"{text} is computed nowhere while serving."
            raise InvalidOption(detail, hint="Read it by a capture of type attention; change it by attend or uniform.")
        return site

    def _check_heads(self, heads: list[int] | None, site: Site) -> list[int] | None:
        if heads is None:
            return None
        if "H" not in site.axes and "G" not in site.axes:
            raise InvalidOption(f"{site.name} has no heads to choose.")
        count = self._config.heads if "H" in site.axes else self._config.kv_heads
        return list(dict.fromkeys(resolve_indices(heads, count, "head")))


def check_captured(size: CaptureSize) -> None:
    """Refuse what an HTTP request may capture if it is too much: InvalidOption."""
    for asked, most, what in (
        (size.numbers, MAX_CAPTURED, "The captures may come to {:,} numbers; a request may have {:,}."),
        (
            size.prompt_rows,
            MAX_PROMPT_ROWS,
            "The logit lens would read {:,} states of prompts; a request may have {:,}.",
        ),
        (size.step_rows, MAX_STEP_ROWS, "The logit lens would read {:,} states in each decode step; {:,} are taken."),
        (size.rows, MAX_ROWS, "The logit lens would read {:,} states of prompts and answers; a request may have {:,}."),
    ):
        if asked > most:
            hint = "Name fewer layers, heads or positions, send fewer prompts, or set max_tokens."
            raise InvalidOption(what.format(asked, most), hint=hint, field="capture")


def _read_weights(given: wire.AttendIntervention, prompt: int, config: DecoderConfig) -> tuple[list[int], list[float]]:
    """Keys in ascending order, and the weight of each."""
    keys = list(TokenRange.of(given.keys, prompt, config.positions).listed or ())
    if given.weights is None:
        return keys, [1 / len(keys)] * len(keys)
    if not len(given.weights) == len(given.keys) == len(keys):
        detail = f"attend has {len(given.weights)} weights for {len(keys)} different keys."
        raise InvalidOption(detail, hint="Give one per key, in the order of the keys.")
    if max(map(abs, given.weights)) > wire.MAX_FACTOR:
        raise InvalidOption(f"Weights of attend are at most {wire.MAX_FACTOR:g}.")
    places = [key + prompt if key < 0 else key for key in given.keys]
    return keys, [weight for _, weight in sorted(zip(places, given.weights, strict=True))]
