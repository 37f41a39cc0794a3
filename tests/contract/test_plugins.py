"""Plug-ins outside of the tree are found, keep all contracts, and need no edited file.

Two are installed into a folder: the wheel of `plugins/example`, and a package of the toys in `plugins/`, with weights
and a template. Each test is a process that finds the folder on its path.
"""

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
EXAMPLE = ROOT / "plugins/example"
TOYS = Path(__file__).parent / "plugins"

PLACES = {
    "network.py": "colours/network.py", "model.py": "colours/model.py", "experiment.py": "experiments/surprise.py",
    "judge.py": "judges/strict.py", "template.toml": "judges/templates/strict.toml",
}  # fmt: skip
"""File in `plugins/` → its place in the package."""

POINTS = """[fovea.models]
medical-seg.toys = fovea_toys.colours
interpretability.toys = fovea_toys.experiments
relevance-judge.toys = fovea_toys.judges
"""

SUITES = (
    "tests/contract/test_servables.py",
    "tests/contract/test_experiments.py",
    "services/llm_longctx/tests/test_method_contract.py",
)

JOINED = ("detection/word-counter", "medical-seg/toy-colour", "toy-surprise", "toy-strict", "novel-keys")
"""Checks that the suites must have run."""


def _run(*words: object, path: str = str(ROOT)) -> str:
    where = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, env=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def _write_weights(folder: Path) -> str:
    """Write weights that mark red pixels; return their digest."""
    kernel = np.zeros((1, 3, 3, 3), np.float32)
    kernel[0, :, 1, 1] = 2.0, -1.5, -1.0
    arrays = {"score.weight": kernel, "score.bias": np.array([-0.25], np.float32)}
    facts: dict[str, Any] = {"scale": {"side": 64}}
    manifest = Manifest(name="toy-colour", origin="trained", network=NetworkSpec(name="toy-colour"), recipe=facts)
    return write_weights(folder, arrays, manifest).sha256


def _install_toys(site: Path) -> None:
    package, facts = site / "fovea_toys", site / "fovea_toys-1.0.dist-info"
    digest = _write_weights(package / "colours/weights")
    for name, place in PLACES.items():
        (package / place).parent.mkdir(parents=True, exist_ok=True)
        (package / place).write_text((TOYS / name).read_text("utf8").replace("DIGEST", digest), "utf8")
    for folder in ("", "colours", "experiments", "judges"):
        (package / folder / "__init__.py").write_text('"""Toys."""\n', "utf8")
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: fovea-toys\nVersion: 1.0\n", "utf8")
    (facts / "entry_points.txt").write_text(POINTS, "utf8")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A path with the tree and a folder into which the example's wheel and the toys were installed."""
    folder = tmp_path_factory.mktemp("plugins")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    # This environment's setuptools builds it: an isolated build would need an index.
    words = "pip -q --disable-pip-version-check install --no-deps --no-index --no-build-isolation --no-compile --target"
    _run(*words.split(), folder / "site", folder / "source")
    _install_toys(folder / "site")
    return os.pathsep.join((str(ROOT), str(folder / "site")))


@pytest.fixture(scope="module")
def passed(path):
    """Lines of the tests that passed: the example's own, and the contracts of the core."""
    chosen = "toy-colour or toy-surprise or toy-strict or word-counter or novel-keys or test_example"
    words = ("pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", chosen, "-rpf", *SUITES, EXAMPLE / "tests")
    return re.findall("^PASSED .*", _run(*words, path=path), re.MULTILINE)


def test_plug_ins_keep_the_contracts_and_the_short_examples_wheel_brings_all(passed):
    assert sum(line.startswith("PASSED plugins/example/") for line in passed) == 5
    for name in JOINED:
        assert any(re.search(rf"[\[-]{name}[\]-]", line) for line in passed), name
    files = [file for ending in ("py", "js", "html") for file in (EXAMPLE / "fovea_example").rglob(f"*.{ending}")]
    assert sum(len(file.read_text("utf8").splitlines()) for file in files) < 150
