"""Evaluation clients from environments of their own, by the very commands of docs/11-clients.md."""

import contextlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.detection.models.fasternet import FasterNetClassifier
from services.gateway.app import build_gateway
from services.gateway.server import create_server
from services.llm_longctx.tests.conftest import MODEL
from shared.serving.tests.oip_mirrors import serving
from shared.settings import Settings
from tests.clients.conftest import OFFLINE, environment, listening

pytestmark = pytest.mark.release
FORMATS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


def commands(tool: str) -> list[str]:
    text = (Path(__file__).parents[2] / "docs/11-clients.md").read_text("utf8").replace("\\\n", "")
    return re.findall(rf"^{tool} .*$", text, re.MULTILINE)


def run(command: str, folder: Path) -> str:
    """Output of a command with its errors: `perf_analyzer` may end well where all requests failed."""
    tool, *words = shlex.split(command)
    python = environment(tool, Path(__file__).parent / f"tools/{tool}.txt")
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 540}
    return subprocess.run([python.with_name(tool), *words], cwd=folder, env=OFFLINE, check=False, **how).stdout


@pytest.mark.parametrize("form", FORMATS)
def test_guidellm_measures_the_language_model(url, folder, tmp_path, form):
    (command,) = commands("guidellm run")
    places = {"http://127.0.0.1:8080": url, "smollm2-135m-instruct": MODEL, FORMATS[0]: form}
    for written, ours in {**places, "model=FOLDER": f"model='{folder}'"}.items():
        assert written in command
        command = command.replace(written, ours)
    said = run(command, tmp_path)
    assert (tmp_path / "guidellm.json").exists(), said
    measured = json.loads((tmp_path / "guidellm.json").read_text("utf8"))["benchmarks"][0]["metrics"]
    assert measured["request_totals"] == {"successful": 4, "errored": 0, "incomplete": 0, "total": 4}
    assert measured["output_token_count"]["successful"]["mean"] == 8


TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
doc_to_text: "{{question}}"
"""
CHOICE = "task: capitals\noutput_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\n"
CHAT = """task: capitals_chat
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["###"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.parametrize(("task", "metric"), [("capitals", "acc,none"), ("capitals_chat", "exact_match,none")])
def test_lm_eval_scores_the_language_model(url, tmp_path, task, metric):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/capitals.yaml").write_text(CHOICE + TASK)
    (tmp_path / "tasks/capitals_chat.yaml").write_text(CHAT + TASK)
    places = ["Paris", "Rome", "Oslo"]
    rows = [{"question": f"Is it {name}? It is", "choices": places, "answer": i} for i, name in enumerate(places)]
    (tmp_path / "capitals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (command,) = [one for one in commands("lm_eval") if f"--tasks {task} " in one]
    for written, ours in (("http://127.0.0.1:8080", url), ("smollm2-135m-instruct", MODEL)):
        command = command.replace(written, ours)
    said = run(command, tmp_path)
    files = list(tmp_path.glob("scores/**/results_*.json"))
    assert len(files) == 1, said
    found = json.loads(files[0].read_text("utf8"))
    assert found["n-samples"][task]["effective"] == 3, said
    assert 0 <= found["results"][task][metric] <= 1


@contextlib.contextmanager
def detecting(tmp_path: Path, **settings: bool) -> Iterator[tuple[str, str]]:
    """A classifier behind a gateway by HTTP, and its replica's own gRPC address."""
    own = Settings(data_dir=tmp_path / "detection", grpc_port=0, intra_op_threads=1, **settings)
    with serving({"fasternet": FasterNetClassifier}, own) as replica:
        upstreams = f"detection={replica.http}"
        front = Settings(data_dir=tmp_path / "gateway", http_port=0, grpc_port=0, static_upstreams=upstreams)
        with listening(create_server(build_gateway(front), front), "/v2/models/fasternet/ready") as url:
            yield url.removeprefix("http://"), replica.grpc


def measure(command: str, http: str, grpc: str, folder: Path) -> str:
    return run(command.replace("127.0.0.1:8080", http).replace("127.0.0.1:8081", grpc), folder)


def test_perf_analyzer_measures_a_model_over_http_and_grpc_with_tensors_that_hold_nan(tmp_path):
    over_http, over_grpc = commands("perf_analyzer")
    with detecting(tmp_path) as (http, grpc):
        for command in (over_http, over_grpc):
            said = measure(command, http, grpc, tmp_path)
            assert re.search(r"Client:\s+Request count: 20\b", said), said
            assert "Failed" not in said


def test_perf_analyzer_is_told_why_where_tensors_with_nan_are_refused(tmp_path):
    with detecting(tmp_path, refuse_non_finite=True) as (http, grpc):
        said = measure(commands("perf_analyzer")[0], http, grpc, tmp_path)
    assert "holds NaN, infinite or out-of-range values" in said
