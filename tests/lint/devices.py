"""`python -m tests.lint.devices`: in packages that run on a GPU, every tensor factory says on which device.

A factory without `device=` makes a tensor on the CPU; on a device its use fails, or copies in every decode step. What
must be on the CPU says `device="cpu"`. Parameters and buffers of modules move with their module.
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]

PACKAGES = (
    "services/llm_longctx/engine", "services/llm_longctx/kv_cache", "services/llm_longctx/methods",
    "plugins/memory/fovea_memory", "plugins/steering/fovea_steering", "services/llm_longctx/serving", "shared/lm",
)  # fmt: skip
"""Packages whose tensors may lie on a device."""

FACTORIES = frozenset((
    "arange", "as_tensor", "empty", "empty_strided", "eye", "frombuffer", "from_numpy", "full", "linspace", "logspace",
    "normal", "ones", "rand", "randint", "randn", "randperm", "tensor", "tril_indices", "triu_indices", "zeros",
))  # fmt: skip

EXCEPTIONS: dict[str, str] = {
    "*::reference": "an oracle computes in float64 where its inputs lie, which is the CPU",
    "services/llm_longctx/methods/core/oracle.py::*": "oracles, likewise",
    "services/llm_longctx/methods/core/eviction/oracle.py::*": "oracles, likewise",
    "services/llm_longctx/methods/core/eviction/budget.py::*": "random tensors for estimates, which no model reads",
    "services/llm_longctx/methods/flexprefill.py::_coverage": "NumPy's sort, on a CPU alone",
    "services/llm_longctx/methods/razor.py::_stepped": "the oracle's steps",
    "services/llm_longctx/kv_cache/allocator/page_store.py::storage": "the CPU's pool; a device's is made beside it",
    "plugins/memory/fovea_memory/mixers/titans/state.py::_tensors": "of a file; `restore` sends them to the network",
    "plugins/memory/fovea_memory/mixers/landmark/block_store.py::_place": "a block on disk",
    "plugins/memory/fovea_memory/experiments/routing_clusters.py::_load_model": "weights of a file, likewise",
    "plugins/memory/fovea_memory/session_model.py::*": "weights of a file, before the network is moved",
    "services/llm_longctx/serving/grammars/token_grammar.py::mask": "a matcher's mask, which the sampler sends",
    "shared/lm/bert.py::forward": "casts of what modules return",
    "shared/lm/weights.py::read_tensors": "weights of a file; `load_decoder` sends them",
    "shared/lm/gguf_file.py::*": "weights of a file, likewise", "shared/lm/host_transfer.py::*": "sends what it makes",
}  # fmt: skip
"""Functions that may make tensors without `device=`, as file::function, each with its reason."""


def list_complaints(root: pathlib.Path = ROOT) -> list[str]:
    return [
        f"{file}:{call.lineno}: {ast.unparse(call.func)}() in {function}() has no device="
        for file, function, call in iter_without_device(root)
        if not find_exception(file, function)
    ]


def iter_without_device(root: pathlib.Path = ROOT) -> Iterator[tuple[str, str, ast.Call]]:
    """File, function and call of each factory without a device, excepted or not."""
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            if "tests" not in file.parts:
                for function, call in iter_factories(ast.parse(file.read_text("utf8"))):
                    yield file.relative_to(root).as_posix(), function, call


def find_exception(file: str, function: str) -> str | None:
    return next((key for key in (f"{file}::{function}", f"{file}::*", f"*::{function}") if key in EXCEPTIONS), None)


def iter_factories(tree: ast.AST, function: str = "<module>", *, moves: bool = False) -> Iterator[tuple[str, ast.Call]]:
    """(function around it, call) of each factory without a device; those of parameters and buffers are left out."""
    for node in ast.iter_child_nodes(tree):
        inner, owned = function, moves
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = node.name
        if isinstance(node, ast.Call):
            room, _, name = ast.unparse(node.func).rpartition(".")
            owned = moves or name in {"Parameter", "register_buffer"}
            is_factory = room == "torch" and name in FACTORIES
            if not owned and is_factory and not any(k.arg == "device" for k in node.keywords):
                yield function, node
        yield from iter_factories(node, inner, moves=owned)


def main() -> None:
    """Print all complaints; the exit code says whether there are any."""
    found = list_complaints()
    summary = f"{len(found)} tensor factories without device=." if found else "Every tensor factory names its device."
    print(*found, summary, sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
