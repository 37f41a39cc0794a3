"""A plug-in of each kind is one new file: a copy of the tree with seven of them passes the contract suites.

The plug-ins in `plugins/` go into their rooms in a copy; nothing else of the copy is changed.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.registry.weights import Manifest, NetworkSpec, write_weights

ROOT = Path(__file__).parents[2]
PLUGINS = Path(__file__).parent / "plugins"

ROOMS = {
    "network.py": "services/medical_seg/models/toy_colour_network.py",
    "model.py": "services/medical_seg/models/toy_colour.py",
    "method.py": "services/llm_longctx/methods/toy_novel_keys.py",
    "experiment.py": "services/interpretability/experiments/toy_surprise.py",
    "judge.py": "services/relevance_judge/judges/toy_strict.py",
    "template.toml": "services/relevance_judge/templates/toy-strict.toml",
    "task.py": "services/detection/models/toy_word_counter.py",
}
"""Plug-in → the one file that it becomes."""

SUITES = (
    "tests/contract/test_servables.py",
    "tests/contract/test_experiments.py",
    "tests/contract/test_judges.py",
    "services/llm_longctx/tests/test_method_contract.py",
)

JOINED = ("detection/toy-word-counter", "medical-seg/toy-colour", "toy-surprise", "toy-strict", "toy-novel-keys")
"""What the suites must have checked."""

LISTING = """
import json
from services.llm_longctx.methods import methods
from services.relevance_judge.prompt_template import load_templates
from shared.registry import servables
from shared.registry.discovery import SERVICES, networks
print(json.dumps({
    "networks": sorted(networks()),
    "methods": sorted(methods()),
    "templates": sorted(load_templates()),
    "models": {name: kind.card.task for service in SERVICES for name, kind in servables(service).items()},
}))
"""


def _link(source: str, target: str) -> None:
    """Hard links are quick and cost no space; another file system takes a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_weights(folder: Path) -> str:
    """Weights that mark red pixels; gives their digest."""
    kernel = np.zeros((1, 3, 3, 3), np.float32)
    kernel[0, :, 1, 1] = 2.0, -1.5, -1.0
    arrays = {"score.weight": kernel, "score.bias": np.array([-0.25], np.float32)}
    facts: dict[str, Any] = {"scale": {"side": 64}}
    manifest = Manifest(name="toy-colour", origin="trained", network=NetworkSpec(name="toy-colour"), recipe=facts)
    return write_weights(folder, arrays, manifest).sha256


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    copy = tmp_path_factory.mktemp("tree")
    skipped = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in ("fovea", "services", "shared", "tests"):
        shutil.copytree(ROOT / name, copy / name, copy_function=_link, ignore=skipped)
    _link(str(ROOT / "pyproject.toml"), str(copy / "pyproject.toml"))
    digest = _write_weights(copy / "services/medical_seg/weights")
    for plugin, room in ROOMS.items():
        assert not (copy / room).exists()
        (copy / room).write_text((PLUGINS / plugin).read_text("utf8").replace("DIGEST", digest), "utf8")
    yield copy
    with contextlib.suppress(OSError):
        shutil.rmtree(copy)


def _python(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    where = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *words], cwd=tree, env=where, capture_output=True, text=True, check=False)


def test_all_are_found(tree):
    listed = _python(tree, "-c", LISTING)
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert "toy-colour" in found["networks"]
    assert "toy-novel-keys" in found["methods"]
    assert "toy-strict" in found["templates"]
    models = {"toy-colour": "segment", "toy-surprise": "probe", "toy-strict": "judge"}
    assert found["models"].items() >= (models | {"toy-word-counter": "count-words"}).items()


def test_all_keep_their_contracts(tree):
    ran = _python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "toy", "-rp", *SUITES)
    assert ran.returncode == 0, ran.stdout[-6000:]
    for name in JOINED:
        assert re.search(rf"^PASSED .*[\[-]{name}[\]-]", ran.stdout, re.MULTILINE), name
