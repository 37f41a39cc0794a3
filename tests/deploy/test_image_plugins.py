"""Images have the plug-ins that their entry points ask for, and hashes of the libraries that these need."""

import importlib.util
import json
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from shared.registry.discovery import SERVICES
from tests.deploy.test_extras import HIDDEN, hidden_modules
from tests.deploy.test_hashes import KNOWN, ROOT, hashes

SPEC = importlib.util.spec_from_file_location("plugins", ROOT / "deploy/plugins.py")
plugins = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plugins)


@pytest.fixture
def tree(tmp_path):
    """Plug-ins by name: their entry-point groups with names, and their dependencies."""

    def write(name, points, *dependencies):
        folder = tmp_path / "plugins" / name
        folder.mkdir(parents=True)
        lines = ["[project]", f"dependencies = {json.dumps(['fovea-platform[cpu]', 'fovea-other', *dependencies])}"]
        for group, names in points.items():
            lines += [f'[project.entry-points."{group}"]', *(f'"{each}" = "x"' for each in names)]
        (folder / "pyproject.toml").write_text("\n".join(lines))

    write("road", {"fovea.routes": ["detection.road"], "fovea.pages": ["road"]}, "gpx")
    write("net", {"fovea.models": ["detection.net", "medical-seg"]}, "scipy>=1", "gpx")
    write("canary", {"fovea.traffic": ["versions"]}, "redis")
    write("verb", {"fovea.commands": ["verb"]}, "rich")
    write("school", {"fovea.models": ["detection.school"], "fovea.recipes": ["detection"]}, "sklearn")
    write("example", {"fovea.models": ["detection.example"]})
    return tmp_path


@pytest.mark.parametrize(
    ("service", "folders", "requirements"),
    [
        ("detection", ["net", "road"], ["gpx", "scipy>=1"]),
        ("medical-seg", ["net"], ["gpx", "scipy>=1"]),
        ("gateway", ["canary", "road"], ["redis"]),
        ("llm-longctx", [], []),
    ],
)
def test_an_image_has_what_brings_something_to_its_service(tree, service, folders, requirements):
    assert plugins.list_folders(service, tree) == [f"./plugins/{name}" for name in folders]
    assert plugins.list_requirements(service, tree) == requirements


@pytest.mark.parametrize("service", ["gateway", *SERVICES])
def test_every_library_of_an_image_s_plug_ins_has_hashes(service):
    names = {hashes.normalise(Requirement(line).name) for line in plugins.list_requirements(service)}
    assert names - KNOWN.keys() == set()


def test_the_gateway_s_image_has_canaries():
    assert "./plugins/rollouts" in plugins.list_folders("gateway")


def test_what_the_gateway_loads_of_plug_ins_needs_its_own_libraries_alone():
    program = """
from fovea.plugins import load_all
loaded = [*load_all("fovea.pages"), *load_all("fovea.traffic"), *load_all("fovea.routes", "gateway")]
print(*loaded, "torch" in sys.modules)
"""
    hidden = [name for name in hidden_modules({"gateway"}) if not name.startswith("fovea")]
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN + program, json.dumps(hidden)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
    *loaded, has_torch = done.stdout.split()
    assert {"sessions", "study", "survey", "answers", "gateway.rollouts"} <= set(loaded)
    assert has_torch == "False"
