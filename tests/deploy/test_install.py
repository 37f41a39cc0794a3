"""The environment for running: what services need and no more, with torch's CPU build where no device is."""

import importlib.util
import subprocess
import sys

import pytest

from shared.registry.discovery import SERVICES
from tests.deploy.test_hashes import ROOT

SPEC = importlib.util.spec_from_file_location("install", ROOT / "deploy/install.py")
install = importlib.util.module_from_spec(SPEC)
with pytest.MonkeyPatch.context() as patch:
    patch.delitem(sys.modules, "plugins", raising=False)  # the folder of that name, which other tests import
    SPEC.loader.exec_module(install)


def test_services_are_those_of_the_product():
    assert sorted(install.SERVICES) == sorted(SERVICES)


@pytest.mark.parametrize(
    ("services", "extras"),
    [
        ([], ["all", "cpu"]),
        (["medical-seg"], ["up", "medical-seg", "onnx"]),
        (["detection", "llm-longctx"], ["up", "detection", "llm-longctx", "cpu"]),
    ],
)
def test_extras_have_torch_only_for_services_that_run_it(services, extras):
    assert install.list_extras(services) == extras
    assert install.needs_torch(services) == ("cpu" in extras)


def test_plugins_are_those_that_a_service_or_the_gateway_calls():
    assert "./plugins/recipes" in install.list_plugins([])
    assert not {"./plugins/example", "./plugins/docs"} & {*install.list_plugins([])}
    assert "./plugins/docs" in install.list_plugins([], test=True)
    some = install.list_plugins(["medical-seg"])
    assert {"./plugins/dicom", "./plugins/rollouts"} <= {*some}
    assert not {"./plugins/recipes", "./plugins/lab", "./plugins/survey"} & {*some}


def test_torch_comes_from_a_folder_or_a_reachable_index_and_from_neither_where_a_device_is(tmp_path, capsys):
    assert install.torch_source(str(tmp_path), []) == ["--no-index", "--find-links", str(tmp_path)]
    assert install.torch_source(str(tmp_path), [str(tmp_path)]) == []
    assert install.torch_source("none", []) == []
    assert install.torch_source("http://127.0.0.1:9/whl", []) == []
    assert "TORCH_INDEX" in capsys.readouterr().out


def test_packages_are_installed_in_the_order_that_keeps_the_cpu_build(monkeypatch):
    asked = []
    monkeypatch.setattr(install, "_pip", lambda *words: asked.append(" ".join(words)))
    install.install_packages(["llm-longctx"], ["--index-url", "x"], "cpu", test=False)
    assert asked[0].startswith("--no-deps --index-url x torch>=")
    assert asked[1].startswith("-e ./fovea -e .[up,llm-longctx,cpu] -e ./plugins/")
    assert asked[2:] == ["--no-deps -r requirements-data.txt"]
    asked.clear()
    install.install_packages(["medical-seg"], ["--index-url", "x"], "cpu", test=False)
    assert [line.partition(" -e ./plugins")[0] for line in asked] == ["-e ./fovea -e .[up,medical-seg,onnx]"]


def test_unknown_service_is_one_line_that_lists_those_there_are():
    command = [sys.executable, str(ROOT / "deploy/install.py"), "--services", "medical"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert said.stderr.startswith("'medical' is not a service. Available: vision-restoration, medical-seg")
