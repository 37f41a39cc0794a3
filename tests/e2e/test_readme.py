"""The blocks of the README and of the docs are run against the product as they stand, ports aside."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from sybil import Document, Sybil
from sybil.parsers.markdown import CodeBlockParser

from loadtests.gallery.samples import write_collection, write_drive, write_study
from tests.deploy.tools import run

pytestmark = [pytest.mark.e2e]

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/01-use.md", ROOT / "docs/08-trained-attention.md"]


def blocks(page, language):
    reader = Sybil([CodeBlockParser(language, evaluator=lambda _: None)])
    return [(example.line, str(example.parsed)) for example in Document.parse(str(page), *reader.parsers).examples()]


LONG = ("fovea probe circuits",)
"""Steps that take half a minute, which only the whole run before a release takes."""


def steps(block):
    """The steps of a block in every run, and all of them with the output that the page shows before a release."""
    (line, code), (_, shown) = block
    quick = [step for step in code.splitlines() if not step.startswith(LONG)]
    is_all = len(quick) == len(code.splitlines())
    yield pytest.param(quick, shown if is_all else "", id=f"01-use.md-{line}")
    if not is_all:
        yield pytest.param(code.splitlines(), shown, id=f"01-use.md-{line}-all", marks=pytest.mark.release)


def without_figures(text):
    """Lines without numbers, ids and the width of columns, which differ from run to run."""
    return [" ".join(re.sub(r"[0-9][0-9.,]*", "0", line).split()) for line in text.splitlines() if line.strip()]


PYTHON = [(page, line, code) for page in PAGES for line, code in blocks(page, "python")]
STEPS = list(zip(blocks(PAGES[1], "shell"), blocks(PAGES[1], "text"), strict=True))
CURL = [(page, line, code) for page in PAGES for line, code in blocks(page, "bash")]


PROOFS = {
    "fovea segment": r" found in 2 of 2 frames",
    "ls out/study": r"(?s)\.json\n.*\.seg\.dcm\n.*\.sr\.dcm\n.*\.strip\.jpg\n", "grep": r'^"area": [1-9]',
    "fovea survey": r"pictures\t6 (?s:.*)damage\tpothole [1-9]", "head -3": r"^.*,.*\n.*,.*\n.*,.*\n$",
    "head -c": r'^\{\s*"type": ?"FeatureCollection"', "fovea judge import": r"wrote c/qrels.txt \(\d+ lines\)",
    "fovea judge batch": r"pairs\t208\b(?s:.*)written\tjudged.jsonl",
    "fovea judge trust": r"is no better than overlap and bm25 and embedding: it orders 0\.6",
    "fovea probe head-patterns": r"wrote out/heads/head-patterns.json",
    "fovea probe retrieval-heads": r"wrote out/heads/retrieval-heads.json",
    "fovea probe circuits": r"wrote out/heads/circuits.json",
}  # fmt: skip
"""How a step of the quick starts begins, and what it says."""


def placed(code, product):
    return code.replace("127.0.0.1:8080", product.url[7:]).replace("127.0.0.1:8081", f"127.0.0.1:{product.grpc}")


def test_the_example_at_the_root_runs(product, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(placed((ROOT / "example.py").read_text("utf8"), product), "utf8")
    done = run(sys.executable, script, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "7" in done.stdout
    assert "objects" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("page", "line", "code"), PYTHON, ids=[f"{p.name}-{n}" for p, n, _ in PYTHON])
def test_python_block_runs_and_prints(product, page, line, code):
    done = run(sys.executable, "-c", placed(code, product), cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(("steps", "shown"), [one for block in STEPS for one in steps(block)])
def test_quick_starts_lead_where_the_page_says(product, steps, shown, tmp_path):
    write_study(tmp_path / "study")
    write_drive(tmp_path / "drive", 6)
    write_collection(tmp_path / "collection")
    path, said = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", ""
    for step in steps:
        env = {**os.environ, "PATH": path, "FOVEA_URL": product.url}
        done = run("bash", "-c", step, cwd=tmp_path, env=env, timeout=300)
        said += done.stdout + done.stderr + "\n"
        [proof] = [proof for start, proof in PROOFS.items() if step.startswith(start)]
        assert done.returncode == (1 if "judge trust" in step else 0), (step, done.stdout, done.stderr)
        assert re.search(proof, done.stdout + done.stderr), (step, done.stdout, done.stderr)
    lines = iter(without_figures(said))  # `…` stands for any lines
    assert [line for line in without_figures(shown) if line != "…" and line not in lines] == [], said


def test_the_first_result_is_what_the_readme_shows(product):
    [shown] = [json.loads(code) for _, code in blocks(PAGES[0], "json")]
    _, command = blocks(PAGES[0], "bash")[0]
    answer = json.loads(run("bash", "-ec", placed(command, product), check=True, timeout=120, cwd=ROOT).stdout)
    [component], [of_readme] = answer.pop("components"), shown.pop("components")
    assert {key: answer[key] for key in shown} == shown
    assert (component["box"], component["area"]) == (of_readme["box"], of_readme["area"])
    assert component["probability"] == pytest.approx(of_readme["probability"], abs=0.001)


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
@pytest.mark.parametrize(("page", "line", "code"), CURL, ids=[f"{p.name}-{n}" for p, n, _ in CURL])
def test_curl_block_is_answered(product, page, line, code, tmp_path):
    shutil.copytree(ROOT / "services/medical_seg/models", tmp_path / "services/medical_seg/models")
    (tmp_path / "out").mkdir()
    command = placed(code, product).replace("curl ", "curl --fail ")
    done = subprocess.run(["bash", "-ec", command], capture_output=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout or any((tmp_path / "out").iterdir())
