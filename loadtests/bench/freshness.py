"""Whether a result still describes what is served: digests of the weights and the code that each suite measures.

A suite's result records both when it is measured. docs/benchmarks.md marks a table as stale where one of them differs.
"""

import ast
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.registry.discovery import shipped_weights
from shared.registry.weights import read_manifest

ROOT = Path(__file__).parents[2]

VISION = ("shared/engines/*.py", "shared/vision/*.py")
GATEWAY = ("services/gateway/**/*.py", "shared/serving/**/*.py", "fovea/api/**/*.py")
METHODS = (
    *(f"services/llm_longctx/{part}/**/*.py" for part in ("methods", "kv_cache", "engine/attention")),
    *(f"services/llm_longctx/kernels/**/*.{ending}" for ending in ("py", "cpp", "h")),
)
NOT_RUN = "!services/llm_longctx/methods/kvzip.py"
"""A method that the suite `ruler` alone runs; patterns that begin with `!` leave files out."""
ENGINE = ("services/llm_longctx/engine/**/*.py", *METHODS, NOT_RUN)
PARTIAL = (
    "services/detection/layers/partial.py",
    "services/detection/models/patnet.py",
    "services/detection/models/fasternet.py",
)

CODE: Mapping[str, tuple[str, ...]] = {
    "detection": ("services/detection/layers/*.py", "services/detection/models/yolo9tr.py"),
    "detection_gateway": (*GATEWAY, *VISION),
    "fairness": GATEWAY,
    "hieraedgenet_graphs": ("services/detection/layers/*.py", "services/detection/models/hieraedgenet.py"),
    "image_starts": ("Dockerfile", "deploy/trim.py", "shared/engines/*.py", "shared/serving/host.py"),
    "interpretability": ("services/interpretability/**/*.py", "shared/lm/*.py"),
    "judge": ("services/relevance_judge/**/*.py", *ENGINE),
    "judging": (
        "services/relevance_judge/embeddings.py",
        *(f"services/relevance_judge/metrics/{name}.py" for name in ("baselines", "bootstrap", "pair_order")),
        "shared/lm/bert.py",
        "shared/lm/embedder.py",
    ),
    "partial_networks": PARTIAL,
    "real": VISION,
    "ruler": METHODS,
    "restoration": ("services/vision_restoration/**/*.py", *VISION),
    "serving": (*GATEWAY, *VISION),
    "longctx_memory": ("services/llm_longctx/kv_cache/**/*.py", "services/llm_longctx/methods/**/*.py", NOT_RUN),
    "sparsity_mixers": tuple(
        f"plugins/memory/fovea_memory/mixers/{part}" for part in ("*.py", "landmark/*.py", "routing/*.py")
    ),
    "sparsity_partial": PARTIAL,
    "vision_engines": VISION,
}
"""Suite → the files whose change makes its result stale; `ENGINE` for suites that are not listed."""

WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "detection_gateway": ("yolo9tr",),
    "real": ("pranet", "hieraedgenet-cells", "yolo9tr", "patnet", "fasternet", "rrformer-restorer"),
    "restoration": ("rrformer-restorer",),
    "sparsity_mixers": ("fovea-landmark-recall", "fovea-routing-bytes"),
    "sparsity_partial": ("fasternet", "patnet"),
    "vision_engines": (
        "rrformer-restorer", "pranet", "pranet-v2", "bmn", "bmn-csa", "fasternet", "hieraedgenet-cells",
        "hieraedgenet-synthetic-pollen", "oat", "patnet", "yolo9tr",
    ),
}  # fmt: skip
"""Suite → the shipped weights that it runs. Suites with random weights, and those of SmolLM2 alone, have none."""


def identify(suite: str) -> dict[str, Any]:
    """Digests of the weights and the code that a suite measures today."""
    shipped = shipped_weights()
    weights = {name: read_manifest(shipped[name]).sha256 for name in WEIGHTS.get(suite, ())}
    return {"weights": weights, "code": digest_code(CODE.get(suite, ENGINE))}


def explain_staleness(table: Mapping[str, Any]) -> str:
    """Return why a result no longer describes what is served, or an empty string."""
    now, then = identify(table["suite"]), table.get("measures", {})
    changed = [name for name, digest in now["weights"].items() if then.get("weights", {}).get(name) != digest]
    if changed and "weights" in then:
        return f"the weights of {', '.join(changed)} have changed since"
    if "code" not in then:
        return "measured before results recorded their code and weights"
    return "" if then["code"] == now["code"] else "its code has changed since"


def digest_code(patterns: tuple[str, ...]) -> str:
    """Digest what the files of these patterns do: their places, imports, docstrings and tests do not count."""
    files = {file for pattern in patterns for file in ROOT.glob(pattern) if "tests" not in file.parts}
    files -= {ROOT / pattern[1:] for pattern in patterns if pattern[0] == "!"}
    texts = [(file.suffix, file.read_text("utf8")) for file in files]
    code = sorted(dump_code(text) if suffix == ".py" else text for suffix, text in texts)
    return hashlib.sha256("\0".join(filter(None, code)).encode()).hexdigest()[:16]


def dump_code(source: str) -> str:
    """The syntax tree of a module without its docstrings and imports; empty where nothing else is in it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_idle(one)]  # type: ignore[attr-defined]
    return dump_tree(tree) if tree.body else ""


def dump_tree(tree: ast.AST) -> str:
    """`ast.dump` as Python 3.11 writes it: 3.12 knows parameters of types, and 3.13 leaves out what is empty."""
    more: dict[str, Any] = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **more).replace(", type_params=[]", "")


def _is_idle(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
