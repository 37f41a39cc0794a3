"""Resources of a compiled kernel: registers, stack, shared memory, and the instructions that decide on its speed.

Read from the machine code by the disassemblers of Triton's wheel. Knows nothing about what kernels compute.
"""

import pathlib
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

_LOAD = re.compile(r"\b(LDG|LDGSTS)\.E([\w.]*)")
_WIDTH = re.compile(r"\.(?:[US]?(8|16|32|64|128|256))\b")
_MATRIX = {
    "mma.sync": re.compile(r"\b[HI]MMA\.|\bQMMA\."),
    "wgmma": re.compile(r"\b[HIQ]GMMA\."),
    "tcgen05": re.compile(r"\bUTC\w*MMA\b"),
}
_LABEL = re.compile(r"\s*(\.L_\w+):")
_JUMP = re.compile(r"\bBRA\S* .*`\((\.L_\w+)\)")
_INSTRUCTION = re.compile(r"^\s+(?:/\*\w+\*/\s+)?(?:@!?U?P\w+ )?[A-Z][\w.]*[ ;]")
_SPILL = re.compile(r"\b(?:LDL|STL)\b")
_BULK = re.compile(r"\bUTMALDG\b")


@dataclass(frozen=True, slots=True)
class KernelUsage:
    """Resources of one kernel.

    Attributes:
        registers: Per thread.
        stack: Bytes per thread in local memory: 0 where nothing is spilled.
        spills: Loads and stores of local memory.
        shared: Bytes of shared memory per program.
        loads: Loads of global memory, copies to shared memory included.
        vectorized: Share of their bytes that move 8 bytes or more per thread.
        copies: Loads that are copies to shared memory in the background.
        matrix: Instructions of tensor cores by family.
        loop: Instructions of the longest loop that multiplies tiles, or of the longest loop.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    loads: int
    vectorized: float
    copies: int
    matrix: dict[str, int]
    loop: int


def inspect(cubin: bytes, shared: int, tools: pathlib.Path) -> KernelUsage:
    """Disassemble a kernel.

    Args:
        cubin: Its machine code.
        shared: Bytes of shared memory that its launch asks for.
        tools: Folder of `cuobjdump` and `nvdisasm`.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources = _output(tools / "cuobjdump", "-res-usage", file.name)
        assembly = _output(tools / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no registers: {resources[:200]!r}")
    return count(assembly, int(found[1]), int(found[2]), shared)


def count(assembly: str, registers: int, stack: int, shared: int) -> KernelUsage:
    """Count instructions of disassembled code."""
    widths: Counter[int] = Counter()
    copies = len(_BULK.findall(assembly))
    for kind, rest in _LOAD.findall(assembly):
        width = _WIDTH.search(rest)
        widths[int(width[1]) if width else 32] += 1
        copies += kind == "LDGSTS"
    total = sum(width * times for width, times in widths.items())
    wide = sum(width * times for width, times in widths.items() if width >= 64)
    matrix = {name: len(pattern.findall(assembly)) for name, pattern in _MATRIX.items()}
    return KernelUsage(
        registers,
        stack,
        len(_SPILL.findall(assembly)),
        shared,
        widths.total(),
        wide / total if total else 1.0,
        copies,
        {name: times for name, times in matrix.items() if times},
        _longest_loop(assembly),
    )


def _longest_loop(assembly: str) -> int:
    labels: dict[str, int] = {}
    loops: list[tuple[bool, int]] = []
    lines = assembly.splitlines()
    for i, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = i
        elif (jump := _JUMP.search(line)) and jump[1] in labels:
            body = lines[labels[jump[1]] : i + 1]
            multiplies = any(pattern.search(one) for one in body for pattern in _MATRIX.values())
            loops.append((multiplies, sum(bool(_INSTRUCTION.search(one)) for one in body)))
    return max(loops, default=(False, 0))[1]


def _output(*command: object) -> str:
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return run.stdout
