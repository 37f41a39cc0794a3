"""Recorded results of the grid: what each kernel used when it was last compiled, and from which sources.

Needs no Triton. Knows the file and its page; knows nothing about compilers.
"""

import ast
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.bench.freshness import dump_tree
from services.llm_longctx.kernels.device.cards import CARDS

OPERATIONS = (
    "decode", "packed_pages", "block_sparse_prefill", "window_prefill", "last_query_scores", "quantized_linear",
    "fp8_linear", "decoder_ops", "merge_lse", "sampling",
)  # fmt: skip
"""Folders whose `triton.py` offers variants."""

RESULTS = pathlib.Path(__file__).parent / "results.json"

_KERNELS = pathlib.Path(__file__).parents[3] / "services/llm_longctx/kernels"


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the grid.

    Attributes:
        name: `operation/shape/card`.
        used: Warps, stages, and the fields of `KernelUsage`.
        over_budget: The kernels over budget, in words.
    """

    name: str
    used: Mapping[str, Any]
    over_budget: Sequence[str] = ()


def digest_sources(operation: str) -> str:
    """Return a digest of what decides on an operation's machine code; comments, docstrings and `__all__` don't."""
    whole = hashlib.sha256()
    for file in (*sorted((_KERNELS / operation).rglob("triton.py")), *sorted((_KERNELS / "device").glob("*.py"))):
        tree = ast.parse(file.read_text("utf8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [one for one in body if not _is_idle(one)]  # type: ignore[attr-defined]
        whole.update(dump_tree(tree).encode())
    return whole.hexdigest()[:16]


def _is_idle(node: ast.AST) -> bool:
    """Whether a statement is a text, or the list of public names."""
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def read_results() -> dict[str, Any]:
    """Return the recorded `triton`, `sources` (operation → digest) and `rows` (name → used)."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf8"))
    return found


def write_results(rows: Sequence[Row]) -> None:
    """Record rows as those of the present sources, in the place of all of their operations."""
    found = read_results()
    now = {row.name.split("/")[0]: digest_sources(row.name.split("/")[0]) for row in rows}
    kept = {name: used for name, used in found["rows"].items() if name.split("/")[0] in set(OPERATIONS) - set(now)}
    whole = kept | {row.name: dict(row.used) for row in rows}
    ordered = sorted(whole, key=lambda name: OPERATIONS.index(name.split("/")[0]))
    sources = {operation: (found["sources"] | now).get(operation) for operation in OPERATIONS}
    head = json.dumps({"triton": importlib.metadata.version("triton"), "sources": sources})[:-1]
    lines = [f"{json.dumps(name)}:{json.dumps(whole[name], separators=(',', ':'))}" for name in ordered]
    RESULTS.write_text(head + ', "rows": {\n' + ",\n".join(lines) + "\n}}\n", "utf8")


def render_page() -> str:
    """Return the table of the documentation."""
    found, limits = read_results(), ", ".join(f"{card.name}: {card.shared:,} B" for card in CARDS)
    head = RESULTS.with_name("page_template.txt").read_text("utf8").format(triton=found["triton"], limits=limits)
    return head + "\n".join(_lines(found)) + "\n"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    cells: dict[str, dict[str, dict[str, str]]] = {}
    for name, used in found["rows"].items():
        operation, shape, card = name.split("/")
        cells.setdefault(operation, {}).setdefault(shape, {})[card] = _cell(used)
    for operation, shapes in cells.items():
        yield from ("", f"## {operation.replace('_', ' ').capitalize()}", "")
        yield "| shape | " + " | ".join(card.name for card in CARDS) + " |"
        yield "|---|" + "---|" * len(CARDS)
        for shape, by_card in shapes.items():
            yield f"| {shape} | " + " | ".join(by_card.get(card.name, "") for card in CARDS) + " |"


def _cell(used: Mapping[str, Any]) -> str:
    matrix = ", ".join(f"{times} {name}" for name, times in used["matrix"].items())
    parts = f"{used['registers']} regs", f"{used['shared'] / 1024:.0f} KB", f"{used['vectorized']:.0%}", matrix
    return ", ".join(part for part in parts if part)
