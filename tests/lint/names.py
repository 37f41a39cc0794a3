"""`python -m tests.lint.names`: names that mean one thing and say what they do, and descriptions where a base has none.

A public class name has one meaning, a public function is no bare participle, a public method has a docstring unless a
base class describes it.
"""

import ast
import collections
import pathlib
import re
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]

SHARED_NAMES: dict[str, str] = {
    "Engine": "the long-context engine and the engines of ONNX graphs are told apart by their rooms",
    "Completion": "the engine's answer and OpenAI's form of it are told apart by their rooms",
}
"""Class names that may stand in several rooms, each with its reason."""

NAMED_SO = {
    "paired": "a public name of RULER-form statistics: scores, paired with dense's",
    "tiled": "a public name of `shared.vision.tiling` that callers import: a model, tiled",
    "softmax_of_all": "a noun",
}
"""Functions that only look like participles, each with its reason."""

IRREGULAR = frozenset((
    "asked", "begun", "bought", "bound", "broken", "brought", "built", "caught", "chosen", "crept", "dealt", "done",
    "drawn", "driven", "eaten", "fallen", "felt", "forbidden", "forgotten", "fought", "found", "frozen", "given",
    "gone", "grown", "heard", "held", "hidden", "kept", "known", "laid", "learnt", "led", "left", "lost", "made",
    "meant", "met", "paid", "proven", "said", "seen", "sent", "shown", "sold", "sought", "spent", "spoken", "stood",
    "stuck", "sung", "sworn", "taken", "taught", "thought", "thrown", "told", "torn", "understood", "woken", "won",
    "worn", "woven", "written",
))  # fmt: skip
"""Participles that don't end in -ed and are no verbs as they stand."""

VERBS = frozenset(("embed", "feed", "need", "proceed", "seed", "shed", "speed", "succeed", "weed"))
"""Verbs that end in -ed."""


def is_participle(name: str) -> bool:
    if name in NAMED_SO or name in VERBS:
        return False
    return name in IRREGULAR or re.fullmatch(r"[a-z]+ed", name) is not None


def iter_definitions(root: pathlib.Path) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Place and node of every class, function and method outside of tests and stubs."""
    for room in ("fovea", "shared", "services", "plugins"):
        for file in sorted((root / room).rglob("*.py")):
            if "tests" in file.parts or "_pb2" in file.name:
                continue
            for node in ast.walk(ast.parse(file.read_text("utf8"))):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{file.relative_to(root)}:{node.lineno}", node


def list_complaints(root: pathlib.Path = ROOT) -> list[str]:
    classes: dict[str, list[str]] = collections.defaultdict(list)
    found: list[str] = []
    for place, node in iter_definitions(root):
        if node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            classes[node.name].append(place)
        elif is_participle(node.name) and not any("property" in ast.unparse(one) for one in node.decorator_list):
            found.append(f"{place}: {node.name}() is a bare participle; name what it does, as a verb")
    for name, places in classes.items():
        if len(places) > 1 and name not in SHARED_NAMES:
            found.append(f"{places[1]}: class {name} exists already at {places[0]}; one name, one meaning")
    return found


def list_undescribed(root: pathlib.Path = ROOT) -> list[str]:
    """Public methods without a docstring, but for those that a base class describes."""
    bases: dict[str, set[str]] = collections.defaultdict(set)
    described: dict[str, set[str]] = collections.defaultdict(set)
    bare: list[tuple[str, str, str]] = []
    for place, owner in iter_definitions(root):
        if isinstance(owner, ast.ClassDef):
            bases[owner.name] |= {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in owner.bases}
            for node in owner.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                    marks = [ast.unparse(mark) for mark in node.decorator_list]
                    if ast.get_docstring(node):
                        described[owner.name].add(node.name)
                    elif owner.name[0] != "_" and not any(mark.endswith(("overload", "setter")) for mark in marks):
                        bare.append((place, owner.name, node.name))

    def ancestors(name: str) -> set[str]:
        return set().union(*({base} | ancestors(base) for base in bases.get(name, set()) - {name}))

    return [
        f"{place}: {owner}.{method}() has no docstring, and no base class describes it"
        for place, owner, method in bare
        if not any(method in described[base] for base in ancestors(owner))
    ]


def main() -> None:
    """Print all complaints; the exit code says whether there are any."""
    found = list_complaints() + list_undescribed()
    summary = f"{len(found)} names to mend." if found else "Names are verbs and nouns, each with one meaning."
    print(*found, summary, sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
