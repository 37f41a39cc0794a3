"""Caches that grow with use have a bound: `functools.cache` stands only on functions of few possible arguments."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]

FEW = {
    "_batch_size": "services and models", "_card": "GPUs of the machine", "_chosen": "back ends, types and devices",
    "_absent": "back ends", "_kernel": "operators, back ends and why one was passed over",
    "_load_model": "names of weights that come with the product",
    "_load_network": "names of weights that come with the product", "_mini_leaderboard": "columns",
    "_queue_timer": "services and models",
    "_timer": "services, models and stages", "count": "lives as long as the one group of samples that it is made for",
    "entries": "groups of entry points and services", "inline_refs": "types of this code",
    "read_measurements": "files that come with the product", "shared_memory": "settings of the process",
    "words_of": "kinds of words",
}  # fmt: skip
"""Functions under an unbounded cache, and what their arguments are."""


def cached():
    for room in ("fovea", "shared", "services", "plugins"):
        for file in (ROOT / room).rglob("*.py"):
            if "tests" in file.parts:
                continue
            for node in ast.walk(ast.parse(file.read_text("utf8"))):
                if isinstance(node, ast.FunctionDef) and any("cache" in ast.unparse(d) for d in node.decorator_list):
                    yield file, node, " ".join(map(ast.unparse, node.decorator_list))


def needs_a_bound(node, decorators):
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    is_bounded = "maxsize=" in decorators and "maxsize=None" not in decorators
    return arguments and not is_bounded and "cached_property" not in decorators and node.name not in FEW


def test_a_cache_has_a_bound_or_few_arguments_and_the_list_names_none_that_is_gone():
    found = [f"{file.relative_to(ROOT)}: {node.name}" for file, node, text in cached() if needs_a_bound(node, text)]
    assert not found, "these need @lru_cache(maxsize=…)"
    names = {node.name for _, node, decorators in cached()}
    assert FEW.keys() <= names
