"""The blocks of the README and of the docs are run against the product as they stand, ports aside."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from sybil import Document, Sybil
from sybil.parsers.markdown import CodeBlockParser

from loadtests.gallery.samples import write_collection, write_drive, write_study

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/01-use.md", ROOT / "docs/08-trained-attention.md"]


def blocks(page, language):
    """(line, code) of every block in a language."""
    reader = Sybil([CodeBlockParser(language, evaluator=lambda _: None)])
    document = Document.parse(str(page), *reader.parsers)
    return [(example.line, str(example.parsed)) for example in document.examples()]


PYTHON = [(page, line, code) for page in PAGES for line, code in blocks(page, "python")]
STEPS = [(line, code) for line, code in blocks(PAGES[0], "shell")]
CURL = [(page, line, code) for page in PAGES for line, code in blocks(page, "bash")]


def placed(code, product):
    return code.replace("127.0.0.1:8080", f"127.0.0.1:{product.http}").replace(
        "127.0.0.1:8081", f"127.0.0.1:{product.grpc}"
    )


def test_there_are_blocks_to_run():
    assert len(PYTHON) >= 2
    assert len(CURL) >= 3
    assert [len(code.splitlines()) for _, code in STEPS] == [3] * 4


def test_the_example_at_the_root_runs(product, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(placed((ROOT / "example.py").read_text("utf8"), product), "utf8")
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "7" in done.stdout
    assert "objects" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("page", "line", "code"), PYTHON, ids=[f"{p.name}-{n}" for p, n, _ in PYTHON])
def test_python_block_runs_and_prints(product, page, line, code):
    done = subprocess.run(
        [sys.executable, "-c", placed(code, product)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(("line", "code"), STEPS, ids=[f"README.md-{line}" for line, _ in STEPS])
def test_first_steps_lead_somewhere(product, line, code, tmp_path):
    write_study(tmp_path / "study")
    write_drive(tmp_path / "drive", 12)
    write_collection(tmp_path / "collection")
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for step in code.splitlines():
        done = subprocess.run(
            ["bash", "-c", step],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "FOVEA_URL": product.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        refused = "judge trust" in step and done.returncode == 1 and "no better" in done.stdout
        assert done.returncode == 0 or refused, (step, done.stdout, done.stderr)
        assert done.stdout.strip() or done.stderr.strip(), step


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
@pytest.mark.parametrize(("page", "line", "code"), CURL, ids=[f"{p.name}-{n}" for p, n, _ in CURL])
def test_curl_block_is_answered(product, page, line, code, tmp_path):
    shutil.copytree(ROOT / "services/medical_seg/models", tmp_path / "services/medical_seg/models")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        ["bash", "-ec", placed(code, product).replace("curl ", "curl --fail ")],
        capture_output=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or any((tmp_path / "out").iterdir())
