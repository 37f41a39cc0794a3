"""Grid of kernels, shapes and cards; each cell is compiled and measured against its budget.

Imports Triton and all kernels, which must not be interpreted: it runs in a process of its own.
"""

import fnmatch
import importlib
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from loadtests.gpu.ahead_of_time.machine_code import KernelUsage, inspect
from loadtests.gpu.ahead_of_time.results import OPERATIONS, Row
from services.llm_longctx.kernels.device.cards import CARDS, GpuCard
from services.llm_longctx.kernels.device.launch import Variant


def iter_variants(card: GpuCard) -> Iterator[Variant]:
    """Yield what is compiled for a card."""
    for operation in OPERATIONS:
        module: Any = importlib.import_module(f"services.llm_longctx.kernels.{operation}.triton")
        yield from module.variants(card)


def compile_variant(variant: Variant, card: GpuCard) -> KernelUsage:
    """Compile one variant for one card and read its machine code."""
    launch, kernel = variant.launch, variant.launch.kernel
    signature = {p.name: "constexpr" if p.is_constexpr else variant.types.get(p.name, "i32") for p in kernel.params}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in variant.aligned
    }
    source = ASTSource(kernel, signature, dict(launch.constants), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", card.capability, 32), options=launch.options)
    tools = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin"
    return inspect(compiled.asm["cubin"], compiled.metadata.shared, tools)


def check_budget(variant: Variant, card: GpuCard, usage: KernelUsage) -> list[str]:
    """Return what is over budget, in words; empty where all is well."""
    found = []
    if usage.stack or usage.spills:
        found.append(f"it spills: {usage.stack} bytes of stack, {usage.spills} loads and stores of it")
    if usage.shared > card.shared:
        found.append(f"it needs {usage.shared} bytes of shared memory; {card.name} has {card.shared}")
    if usage.vectorized < variant.vectorized:
        found.append(f"only {usage.vectorized:.2f} of its loads' bytes are vectorized")
    if variant.matrix and not usage.matrix:
        found.append("it has no tensor-core instruction")
    if variant.copies and not usage.copies:
        found.append("it has no copy to shared memory in the background")
    return found


def measure(patterns: Sequence[str] = ("*",)) -> Iterator[Row]:
    """Compile the cells whose `operation/shape/card` matches one of the patterns: one row of the table each."""
    for card in CARDS:
        for variant in iter_variants(card):
            name = f"{variant.operation}/{variant.shape}/{card.name}"
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                usage = compile_variant(variant, card)
                sizes = {"warps": variant.launch.warps, "stages": variant.launch.stages}
                used = asdict(usage) | {"vectorized": round(usage.vectorized, 3)}
                yield Row(name, sizes | used, check_budget(variant, card, usage))
