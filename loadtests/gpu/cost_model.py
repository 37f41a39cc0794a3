"""Cost of a decode step on a GPU, computed: bytes, operations, instructions and launches of each kernel, and its floor.

A kernel takes the longest of its bytes, its operations on tensor cores and the instructions that its warps issue, which
come from the machine code on record; and every launch costs a gap. Nothing here is measured. Knows shapes and cards;
knows nothing about engines.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loadtests.gpu.ahead_of_time.results import read_results
from services.llm_longctx.kernels.device.cards import CARDS, GpuCard
from services.llm_longctx.kernels.device.shapes import MODELS, ModelShape
from services.llm_longctx.kernels.packed_pages.layout import PAGE, PackedLayout, tile_entries
from services.llm_longctx.kernels.quantized_linear.packing import STRIP, tile_of
from shared.lm.quantization import GROUP

BANDWIDTH_SHARE = 0.92
"""Share of a card's bandwidth that a kernel of wide loads reaches."""

MATRIX_SHARE = 0.6
"""Share of its tensor cores' rate."""

ISSUE_SHARE = 0.8
"""Share of its schedulers' slots, four per processor and clock."""

GAP = 1e-6
"""Seconds between two kernels of a captured graph."""

CLOCKS = {"A100": 1.41e9, "L4": 2.04e9, "H100": 1.755e9, "B200": 1.85e9}
"""Clock of each card's processors under load, in 1/s."""

_CODE_BYTES = {16: 2.0, 8: 34 / 32, 4: 20 / 32}
"""Bytes of a weight: codes of 8 or 4 bits come with a scale, and 4 bits with a minimum, per 32."""


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one kind of kernel in a step, all layers together.

    Attributes:
        kernel: Its name.
        bytes: Moved to and from memory.
        floor: Of these, what any implementation must read: weights, keys and values, once.
        operations: On tensor cores.
        instructions: That warps issue in its main loop.
        launches: How many.
        resident: Warps of it that fit on a processor at once, where its code is on record.
    """

    kernel: str
    bytes: float
    floor: float = 0.0
    operations: float = 0.0
    instructions: float = 0.0
    launches: int = 0
    resident: int = 0

    def seconds(self, card: GpuCard) -> float:
        """How long it takes, gaps included."""
        return max(self.bounds(card).values()) + GAP * self.launches

    def bounds(self, card: GpuCard) -> dict[str, float]:
        """Seconds by what bounds it."""
        issued = 4 * card.processors * CLOCKS[card.name] * ISSUE_SHARE
        return {
            "memory": self.bytes / (card.bandwidth * BANDWIDTH_SHARE),
            "tensor cores": self.operations / (card.matrix_rate * MATRIX_SHARE),
            "instructions": self.instructions / issued,
        }


@dataclass(frozen=True, slots=True)
class Step:
    """A decode step.

    Attributes:
        model: The decoder.
        batch: Sequences.
        context: Entries that each head of each sequence reads.
        weight_bits, cache_bits: 16, 8 or 4.
    """

    model: ModelShape
    batch: int
    context: int
    weight_bits: int = 16
    cache_bits: int = 16

    @property
    def entry_bytes(self) -> float:
        """Bytes of one entry of one key/value head."""
        d = self.model.head_dim
        few: Any = self.cache_bits
        return 4.0 * d if few == 16 else PackedLayout(few, d).nbytes / PAGE


def cost_of_step(step: Step, card: GpuCard) -> list[Work]:
    """List the kernels of a step."""
    return [_products(step, card), _logits(step, card), _attention(step, card), *_others(step, card)]


def floor_seconds(step: Step, card: GpuCard) -> float:
    """Time of a step that reads weights and entries once, at the card's full bandwidth."""
    return sum(work.floor for work in cost_of_step(step, card)) / card.bandwidth


def step_seconds(step: Step, card: GpuCard) -> float:
    """Time of a step, as computed."""
    return sum(work.seconds(card) for work in cost_of_step(step, card))


@cache
def _record() -> Mapping[str, Any]:
    rows: Mapping[str, Any] = read_results()["rows"]
    return rows


def _issued(name: str, card: GpuCard) -> float:
    """Warp instructions of one tile of a kernel on record."""
    used = _record()[f"{name}/{card.name}"]
    return float(used["loop"] * used["warps"])


def _resident(name: str, card: GpuCard) -> int:
    """Warps of a kernel on record that a processor holds: limited by registers, shared memory and programs."""
    used = _record()[f"{name}/{card.name}"]
    warps = int(used["warps"])
    by_registers = 65536 // (-(-int(used["registers"]) // 8) * 8 * 32 * warps)
    by_memory = int(card.shared + 1024) // (int(used["shared"]) + 1024)
    return min(by_registers, by_memory, 32, (48 if card.capability == 89 else 64) // warps) * warps


def _products(step: Step, card: GpuCard) -> Work:
    model, bits = step.model, step.weight_bits
    weights = model.parameters - model.vocab * model.width
    moved = weights * _CODE_BYTES[bits]
    activations = (
        step.batch * model.layers * (4 * model.width + 2 * model.heads * model.head_dim + 3 * model.hidden) * 2
    )
    launches = 7 * model.layers if bits == 16 else 6 * model.layers  # few-bit gate and up are one
    issued, resident = _issued_by_products(weights, bits, step.batch, card)
    return Work("linear layers", moved + activations, moved, 2.0 * weights * step.batch, issued, launches, resident)


def _issued_by_products(weights: float, bits: int, batch: int, card: GpuCard) -> tuple[float, int]:
    """Warp instructions of products with few-bit matrices, and their warps on a processor.

    Whole matrices are the vendor's, and bound by memory.
    """
    if bits == 16:
        return 0.0, 0
    rows = next((rows for rows in (16, 32, 64) if rows >= batch), 64)
    strips, groups = tile_of(card.capability)
    tiles = weights / (strips * STRIP * groups * GROUP) * -(-batch // rows)
    name = f"quantized_linear/Llama-3-8B, {bits} bits, {rows} rows"
    return tiles * _issued(name, card), _resident(name, card)


def _logits(step: Step, card: GpuCard) -> Work:
    weights, bits = step.model.vocab * step.model.width, 16 if step.weight_bits == 16 else 8
    moved = _CODE_BYTES[bits] * weights
    issued, resident = _issued_by_products(weights, bits, step.batch, card)
    whole = moved + 2.0 * step.batch * step.model.vocab
    return Work("logits", whole, moved, 2.0 * weights * step.batch, issued, 1, resident)


def _attention(step: Step, card: GpuCard) -> Work:
    model, d = step.model, step.model.head_dim
    entries = float(step.batch * model.layers * model.kv_heads * step.context)
    group = model.heads // model.kv_heads
    problems = step.batch * model.kv_heads
    packed, wide = step.cache_bits != 16, _power_of_two(d)
    programs = 8 if packed else 4
    parts = max(min(-(-programs * card.processors // problems), 64, -(-step.context // 256)), 1)
    partial = 2.0 * 4 * model.layers * problems * parts * group * (d + 1) if parts > 1 else 0.0
    tile = tile_entries(wide) if packed else min(max(16384 // (2 * wide), 32), 128)
    shape = "Llama-3-8B" if model.name == "Qwen3-8B" else model.name
    name = f"packed_pages/{shape}, {step.cache_bits} bits" if packed else f"decode/{shape}, bf16, runs"
    moved = entries * step.entry_bytes
    operations = entries * 4 * d * (8 if packed else 16)  # query rows are filled up to so many
    launches = model.layers * (3 if packed else 1)  # packed pages, the recent window, and their merge
    issued = entries / tile * _issued(name, card)
    return Work("attention", moved + partial, moved, operations, issued, launches, _resident(name, card))


def _others(step: Step, card: GpuCard) -> Iterator[Work]:
    model, rows = step.model, step.batch * step.model.layers
    yield Work("norms", rows * 2 * model.width * 6.0, launches=2 * model.layers + 1)
    yield Work("rotation", rows * (model.heads + model.kv_heads) * model.head_dim * 4.0, launches=model.layers)
    yield Work("cache writes", rows * model.kv_heads * model.head_dim * 8.0, launches=2 * model.layers)
    if step.weight_bits == 16:
        yield Work("gates", rows * model.hidden * 6.0, launches=model.layers)
    yield Work("residual sums", rows * 2 * model.width * 10.0, launches=2 * model.layers)
    # Three passes over the logits: the largest, the mass of what is left, and the token. The loop on record has four of
    # them and more. A row has one processor, so the others' slots are lost. A limit (top_k or top_p) adds 18 passes.
    issued = _issued("sampling/logits in bf16", card) * model.vocab / 4096 * max(card.processors, step.batch)
    yield Work("sampling", 3.0 * step.batch * model.vocab * 2, instructions=issued, launches=1)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


_CASES: Sequence[tuple[str, int, int]] = (
    ("bf16", 16, 16),
    ("8-bit weights and cache", 8, 8),
    ("4-bit weights and cache", 4, 4),
    ("bf16 weights, 4-bit cache", 16, 4),
)

_METHODS: Sequence[tuple[str, float]] = (
    ("dense", 1.0),
    ("duo, razor: half of the heads retrieve, others hold 1,088", 0.5 + 0.5 * 1088 / 32768),
    ("budget of 2,048 (snapkv, adakv, pyramidkv, tova, knorm, keydiff, lagkv, …)", 2048 / 32768),
    ("streaming_llm: 64 sinks and a window of 1,024", 1088 / 32768),
)
"""Share of 32,768 entries that a method's step reads."""


def render_page() -> str:
    """Return the page of the documentation."""
    template = Path(__file__).with_name("cost_template.txt").read_text("utf8")
    head = template.format(bandwidth=BANDWIDTH_SHARE, matrix=MATRIX_SHARE, issue=ISSUE_SHARE, gap_us=GAP * 1e6)
    return head + "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| model | weights and cache | " + " | ".join(f"{card.name}: floor → computed, ms" for card in CARDS) + " |"
    yield "|---|---|" + "---|" * len(CARDS)
    for model in MODELS:
        for label, weight_bits, cache_bits in _CASES:
            step = Step(model, 32, 8192, weight_bits, cache_bits)
            yield f"| {model.name} | {label} | " + " | ".join(_cell(step, card) for card in CARDS) + " |"
    yield from _kernel_lines(next(card for card in CARDS if card.name == "H100"))
    yield from _method_lines()


def _cell(step: Step, card: GpuCard) -> str:
    floor, found = floor_seconds(step, card), step_seconds(step, card)
    held = step.model.parameters * _CODE_BYTES[step.weight_bits]
    held += step.batch * step.context * step.model.layers * step.model.kv_heads * step.entry_bytes
    fits = "" if held < 0.9 * card.memory else " (does not fit)"
    return f"{floor * 1e3:.1f} → {found * 1e3:.1f} ({found / floor:.2f}×){fits}"


def _kernel_lines(card: GpuCard) -> Iterator[str]:
    for label, weight_bits, cache_bits in (_CASES[0], _CASES[2]):
        yield from ("", f"## Kernels: Llama-3-8B on {card.name}, 32 × 8,192, {label}", "")
        yield "| kernel | GB | operations, 10⁹ | warp instructions, 10⁹ | resident warps | launches | ms | bound by |"
        yield "|---|---|---|---|---|---|---|---|"
        for work in cost_of_step(Step(MODELS[1], 32, 8192, weight_bits, cache_bits), card):
            bounds = work.bounds(card)
            cells = (
                work.kernel,
                f"{work.bytes / 1e9:.3f}",
                f"{work.operations / 1e9:.0f}",
                f"{work.instructions / 1e9:.2f}",
                str(work.resident or "–"),
                str(work.launches),
                f"{work.seconds(card) * 1e3:.2f}",
                max(bounds, key=lambda name: bounds[name])
                if max(bounds.values()) > GAP * work.launches
                else "launches",
            )
            yield "| " + " | ".join(cells) + " |"


def _method_lines() -> Iterator[str]:
    yield from ("", "## Methods: Llama-3-8B in bf16, 8 sequences of 32,768 entries", "")
    yield "| method | entries that a head reads | " + " | ".join(f"{card.name}, ms" for card in CARDS) + " |"
    yield "|---|---|" + "---|" * len(CARDS)
    for label, share in _METHODS:
        step = Step(MODELS[1], 8, round(32768 * share))
        times = " | ".join(f"{step_seconds(step, card) * 1e3:.1f}" for card in CARDS)
        yield f"| {label} | {step.context:,} | {times} |"
