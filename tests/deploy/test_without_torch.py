"""The ONNX-only flavour: a service whose graphs are given starts without torch, and answers what it answers with it.

Where torch is installed, vision services do not import it either: a child process exports the graphs that are missing.
"""

import importlib
import json
import sys

import pytest
from typer.testing import CliRunner

from fovea.errors import FoveaError, NotReady
from shared.registry import CallContext, LoadContext
from shared.registry.discovery import servables
from shared.settings import environment
from shared.vision.export_cli import export
from tests.deploy.tools import run
from tests.harness.hypothesis_profiles import in_depth

SERVICES = ("medical-seg", "vision-restoration", "detection")
"""Services whose image has a flavour without torch."""

TIMES = {"times", "estimate", "ms"}
"""Fields of an answer that hold measured seconds, which differ from call to call."""

WITHOUT_TORCH = '''
import json, sys, time
from importlib.machinery import PathFinder

class Without:
    """Finds what is installed, less these."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        is_away = name.split(".")[0] in {"torch", "onnx", "onnxscript", "triton", "transformers"}
        return None if is_away else PathFinder.find_spec(name, path, target)

Without.find_distributions = PathFinder.find_distributions
if sys.argv[2:] == ["hidden"]:
    sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from starlette.testclient import TestClient
from shared.registry.discovery import servables
from shared.serving.build_app import build
from shared.settings import settings

service = sys.argv[1]
with TestClient(build(service, settings=settings())) as client:
    until = time.monotonic() + 240
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < until, client.get("/readyz").text
        time.sleep(0.1)
    found = {}
    for name, kind in servables(service).items():
        body = client.get(f"/v1/models/{name}/example").json()
        answer = client.post(f"/v1/{kind.card.task}", json=body)
        assert answer.status_code == 200, answer.text
        found[name] = answer.json()
assert "torch" not in sys.modules
print(json.dumps(found))
'''


@pytest.fixture(scope="module", params=in_depth(SERVICES, ["medical-seg", "vision-restoration"]))
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    ran = CliRunner().invoke(export, ["graphs", str(folder), "--service", request.param])
    assert ran.exit_code == 0, ran.output
    return request.param, folder


def test_a_service_without_torch_answers_as_with_it(exported, tmp_path):
    service, graphs = exported
    answers = ask_without_torch(service, tmp_path, "hidden", FOVEA_GRAPHS_DIR=str(graphs))
    assert set(answers) == set(servables(service))
    for name, kind in servables(service).items():
        served = kind.load(LoadContext(cache=graphs, weights=tmp_path / "none"))
        try:
            (expected,) = served.predict([served.example()], CallContext())
        finally:
            served.close()
        assert not isinstance(expected, FoveaError)
        wanted = json.loads(expected.model_dump_json(exclude_none=False))
        assert {**answers[name], **dict.fromkeys(TIMES)} == {**wanted, **dict.fromkeys(TIMES)}


@pytest.mark.parametrize("exported", in_depth(SERVICES, ["vision-restoration"]), indirect=True)
def test_torch_that_is_installed_is_not_imported(exported, tmp_path):
    service, graphs = exported
    is_given = service != "vision-restoration"  # exporting is the same code for all, and takes longer for others
    (empty := tmp_path / "empty").mkdir()  # in place of graphs that `make run` has exported into the environment
    answers = ask_without_torch(service, tmp_path, FOVEA_GRAPHS_DIR=str(graphs if is_given else empty))
    assert (set(answers), bool(list(tmp_path.rglob("*.onnx")))) == (set(servables(service)), not is_given)


@pytest.mark.usefixtures("fresh_exports")
def test_without_torch_and_without_graphs_the_reason_is_said(tmp_path, monkeypatch):
    def import_less_torch(name, find=importlib.import_module):
        if name == "shared.export.torch_form":
            raise ModuleNotFoundError(name="torch")
        return find(name)

    monkeypatch.setattr(importlib, "import_module", import_less_torch)
    kind = servables("medical-seg")["pranet"]
    with pytest.raises(NotReady, match="no graph pranet-", check=lambda told: "fovea export graphs" in told.hint):
        kind.load(LoadContext(engine="onnx", cache=tmp_path, weights=tmp_path / "none"))


def ask_without_torch(service, folder, *flags, **settings):
    """Answers of each model of a service to its example, in a process that does not import torch."""
    env = environment(FOVEA_DATA_DIR=str(folder), FOVEA_INTRA_OP_THREADS="1", PYTHONPATH=":".join(sys.path), **settings)
    done = run(sys.executable, "-c", WITHOUT_TORCH, service, *flags, env=env, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
