"""Plug-ins outside of the tree, a wheel and a package, are found, keep all contracts, and need no edited file."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins/example"
TOYS = Path(__file__).parent / "plugins"

SUITES = [f"tests/contract/test_{name}.py" for name in ("servables", "experiments")]
SUITES += ["services/llm_longctx/tests/test_method_contract.py"]

JOINED = ("detection/word-counter", "toy-strict", "novel-keys")
"""Checks that the suites must have run."""


def _run(*words: object, path: str = str(ROOT)) -> str:
    where = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def _install_toys(site: Path) -> None:
    package, facts = site / "fovea_toys/judges", site / "fovea_toys-1.0.dist-info"
    (package / "templates").mkdir(parents=True)
    for name, place in (("__init__.py", ".."), ("__init__.py", "."), ("judge.py", "."), ("template.toml", "templates")):
        shutil.copy(TOYS / name, package / place)
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: fovea-toys\nVersion: 1.0\n", "utf8")
    (facts / "entry_points.txt").write_text("[fovea.models]\nrelevance-judge.toys = fovea_toys.judges\n", "utf8")


@pytest.mark.parametrize(("checks", "marks"), [
    ("facts or engine or reference", "not release"), pytest.param("check", "", marks=pytest.mark.release),
], ids=["quick", "all"])  # fmt: skip
def test_plug_ins_keep_the_contracts_and_the_short_examples_wheel_brings_all(tmp_path, checks, marks):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    # This environment's setuptools builds it: an isolated build would need an index.
    pip = "pip -q --disable-pip-version-check install --no-deps --no-index --no-build-isolation --no-compile --target"
    _run(*pip.split(), site, source)
    _install_toys(site)
    chosen = f"toy-strict or word-counter or (novel-keys and ({checks})) or test_example"
    words = ("pytest", "-q", "-n0", "-p", "no:cacheprovider", "-rpf", f"-m{marks}", f"-k{chosen}", *SUITES)
    said = _run(*words, EXAMPLE / "tests", path=os.pathsep.join((str(ROOT), str(site))))
    passed = re.findall("^PASSED .*", said, re.MULTILINE)
    assert sum(line.startswith("PASSED plugins/example/") for line in passed) == 4
    for name in JOINED:
        assert any(re.search(rf"[\[-]{name}[\]-]", line) for line in passed), name
    files = [file for ending in ("py", "js", "html") for file in (EXAMPLE / "fovea_example").rglob(f"*.{ending}")]
    assert sum(len(file.read_text("utf8").splitlines()) for file in files) < 150
