"""From the protocol's `interventions` and `capture` to the engine's taps: names resolved, widths and sizes checked.

Every refusal names the field, as `interventions[0].vector`. Knows sites, vectors and limits; knows no engine.
"""

from collections import Counter

import torch
from torch import Tensor

from fovea.api import interventions as wire
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption, in_field
from fovea_steering.capture_store import CaptureStore
from fovea_steering.capture_writer import INLINE_NUMBERS
from fovea_steering.make_vectors import STRENGTHS, choose_layer
from fovea_steering.patches import PatchBuilder, shape_vector
from fovea_steering.vector_store import VectorStore
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
from shared.lm.activation_names import SITES, WEIGHT_SITES, Site, parse_layer, parse_site, resolve_indices
from shared.lm.config import DecoderConfig
from shared.lm.hook_names import HOOK_POINTS, from_hook_name
from shared.lm.interventions import Add, Attend, Replace, Scale, Uniform

MAX_CAPTURED = 2**24
"""Numbers that the captures of one request may come to, answers of the longest length: 64 MiB in float32."""

MAX_PROMPT_ROWS = 1024
"""Residual streams of prompts that the lens of one request reads: each is a product with the output matrix."""

MAX_STEP_ROWS = 128
"""Rows of one decode step, over all answers: everybody in the batch waits for them."""

MAX_ROWS = 2**15
"""Rows of prompts and answers together: 1,092 tokens through 30 layers."""

SERVED_SITES = tuple(site for site in SITES if site not in WEIGHT_SITES)
"""Sites that are computed while serving."""


ALL_LAYERS = "resid_post"
"""Site of a stored vector in each of its layers."""


class TapBuilder:
    """Builds the taps of all prompts of one HTTP request.

    Args:
        config: Its sizes.
        weights: Digest of its weights, to which stored vectors belong.
        vectors: The tenant's.
        files: The tenant's captures; None where there is no place for them.
    """

    def __init__(self, config: DecoderConfig, weights: str, vectors: VectorStore, files: CaptureStore | None) -> None:
        self._config, self._weights, self._vectors, self._files = config, weights, vectors, files
        self._patches = PatchBuilder(config, weights, files)
        self._size = CaptureSize()

    def build(self, options: GenerationOptions, prompt: int, max_tokens: int) -> RequestTaps:
        """The taps of a prompt with so many tokens, whose answers have at most so many.

        Raises:
            InvalidOption: A site, layer, head or position that does not exist, a wrong width, too strong or too much.
            NotFound: A vector that does not exist.
        """
        edits: list[PlacedEdit] = []
        end = prompt + max(max_tokens - 1, 0)  # the last token is drawn, but never fed
        for i, one in enumerate(options.interventions or ()):
            with in_field(f"interventions[{i}]"):
                edits += self._build_edits(one, prompt, end)
        captures: list[Capture] = []
        for i, asked in enumerate(options.capture or ()):
            with in_field(f"capture[{i}]"):
                captures.append(self._build_capture(asked, prompt, end))
        size = self._measure(captures, prompt, end, options.n)
        self._size += size
        _check_size(self._size)
        if self._files is None and (each := size.numbers // options.n) > INLINE_NUMBERS:
            detail = f"Captures of {each:,} numbers need an object store; without one an answer has {INLINE_NUMBERS:,}."
            hint = "Name fewer layers, heads or positions, or set max_tokens."
            raise InvalidOption(detail, hint=hint, field="capture")
        return RequestTaps(tuple(edits), tuple(captures), size)

    def _build_edits(self, given: wire.Intervention, prompt: int, end: int) -> list[PlacedEdit]:
        tokens, config = TokenRange.of(given.positions, prompt, end), self._config
        if isinstance(given, wire.AddIntervention):
            return [PlacedEdit(Add(site, value, given.heads), tokens) for site, value in self._find_vectors(given)]
        if isinstance(given, wire.ScaleIntervention):
            site = self._parse_site(given.site)
            return [PlacedEdit(Scale(str(site), given.factor, self._check_heads(given.heads, site)), tokens)]
        if isinstance(given, wire.SetIntervention):
            site, heads = self._parse_site(given.site), self._check_heads(given.heads, self._parse_site(given.site))
            tokens, value = self._patches.build(given, site, heads, tokens, prompt, end)
            return [PlacedEdit(Replace(str(site), value, heads), tokens)]
        layer = parse_layer(given.layer, config, f"layer {given.layer}")
        if isinstance(given, wire.UniformIntervention):
            return [PlacedEdit(Uniform(layer, self._check_heads(given.heads, Site("q", layer))), tokens)]
        heads = self._check_heads(given.heads, Site("z", layer))
        keys, weights = _read_weights(given, prompt, end)
        return [PlacedEdit(Attend(layer, heads or [], [], keys, torch.tensor(weights, device="cpu")), tokens)]

    def _find_vectors(self, given: wire.AddIntervention) -> list[tuple[str, Tensor]]:
        """Additions, as [1,1,D] or [1,1,heads,d], by site."""
        if given.scale is not None and given.strength is not None:
            raise InvalidOption("Give either scale or strength.", field="strength")
        if isinstance(given.vector, str):
            found = self._read_stored(given.vector, given)
        elif given.site is None:
            raise InvalidOption("A vector of numbers needs a site, such as resid_post.14.")
        elif given.strength is not None:
            detail = "Numbers have no strength: nobody knows how long activations are there."
            raise InvalidOption(detail, hint="Set scale, or store a vector.", field="strength")
        else:
            scale = 1.0 if given.scale is None else given.scale
            found = [(self._parse_site(given.site), torch.tensor(given.vector, device="cpu") * scale)]
        for site, _ in found:
            self._check_heads(given.heads, site)
        return [(str(site), shape_vector(self._config, site, value)) for site, value in found]

    def _read_stored(self, name: str, given: wire.AddIntervention) -> list[tuple[Site, Tensor]]:
        """A stored vector in the layers that are asked for, as long as it is to be there."""
        facts = self._vectors.get(name)
        if facts.weights != self._weights[:16]:
            detail = f"The steering vector {facts.id} belongs to other weights ({facts.model})."
            raise InvalidOption(detail, hint="Make one for this model with POST /v1/steering-vectors.")
        directions, known = self._vectors.read(facts), {one.layer: one for one in facts.layers}
        best = choose_layer(facts.layers).layer if facts.layer is None else facts.layer
        if given.site == ALL_LAYERS:
            sites = [Site("resid_post", layer) for layer in directions]
        else:
            sites = [Site("resid_post", best) if given.site is None else self._parse_site(given.site)]
        if sites[0].layer not in directions:
            has = ", ".join(map(str, directions))
            raise InvalidOption(f"{facts.id} has no vector for {given.site}; it has layers {has}.")
        strength = (facts.strength or STRENGTHS[0]) if given.strength is None else given.strength

        def scale(layer: int) -> float:
            one = known[layer]
            return strength * one.activation_norm / max(one.norm, 1e-9) if given.scale is None else given.scale

        return [(site, directions[site.layer] * scale(site.layer)) for site in sites]

    def _build_capture(self, given: wire.Capture, prompt: int, end: int) -> Capture:
        tokens = TokenRange.of(given.positions, prompt, end)
        if isinstance(given, wire.CaptureActivation):
            if given.keep and self._files is None:
                raise InvalidOption("Captures are kept in the object store, and this service has none.", field="keep")
            return ActivationCapture(str(self._parse_site(given.site)), tokens, given.keep)
        asked = range(self._config.layers) if given.layers is None else given.layers
        layers = tuple(dict.fromkeys(parse_layer(layer, self._config, f"layer {layer}") for layer in asked))
        if isinstance(given, wire.CaptureLogitLens):
            return LensCapture(layers, given.top, tokens)
        heads = self._check_heads(given.heads, Site("q", 0))
        return AttentionCapture(layers, tuple(range(self._config.heads) if heads is None else heads), tokens)

    def _measure(self, captures: list[Capture], prompt: int, end: int, n: int) -> CaptureSize:
        """Largest size of the captures, for answers of the longest length."""
        size, steps = CaptureSize(), Counter[int]()
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
        if text.partition(".")[0] in WEIGHT_SITES or text.endswith(tuple(HOOK_POINTS[one] for one in WEIGHT_SITES)):
            detail = f"{text} is computed nowhere while serving."
            raise InvalidOption(detail, hint="Read it by a capture of type attention; change it by attend or uniform.")
        return parse_site(from_hook_name(text, self._config, SERVED_SITES), self._config)

    def _check_heads(self, heads: list[int] | None, site: Site) -> list[int] | None:
        if heads is None:
            return None
        if "H" not in site.axes and "G" not in site.axes:
            raise InvalidOption(f"{site.name} has no heads to choose.")
        count = self._config.heads if "H" in site.axes else self._config.kv_heads
        return list(dict.fromkeys(resolve_indices(heads, count, "head")))


def _check_size(size: CaptureSize) -> None:
    """Refuse captures that are too much for one HTTP request: InvalidOption."""
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


def _read_weights(given: wire.AttendIntervention, prompt: int, end: int) -> tuple[list[int], list[float]]:
    """Keys in ascending order, and the weight of each."""
    keys = list(TokenRange.of(given.keys, prompt, end).listed or ())
    if given.weights is None:
        return keys, [1 / len(keys)] * len(keys)
    if not len(given.weights) == len(given.keys) == len(keys):
        detail = f"attend has {len(given.weights)} weights for {len(keys)} different keys."
        raise InvalidOption(detail, hint="Give one per key, in the order of the keys.")
    if max(map(abs, given.weights)) > wire.MAX_FACTOR:
        raise InvalidOption(f"Weights of attend are at most {wire.MAX_FACTOR:g}.")
    places = [key + prompt if key < 0 else key for key in given.keys]
    return keys, [weight for _, weight in sorted(zip(places, given.weights, strict=True))]
