"""The core alone imports, starts, shows no trace of a plug-in, and says how to install the one that is asked for."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KNOWN = json.loads((ROOT / "fovea/known_plugins.json").read_text("utf8"))


def link_libraries(folder: Path, *, with_core: bool) -> Path:
    """Link all that is installed here, except plug-ins, into a new folder; with the core also its entry points."""
    folder.mkdir()
    for place in Path(sysconfig.get_path("purelib")).iterdir():
        is_core = with_core and place.name.startswith(("fovea_platform-", "fovea_serve-"))
        if is_core or not (place.suffix == ".pth" or place.name.startswith("fovea")):
            (folder / place.name).symlink_to(place)
    return folder


def run_alone(libraries: Path, *words: object, tree: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python with a tree and these libraries as its whole path: without `site`, no .pth file adds to it."""
    where = {name: value for name, value in os.environ.items() if not name.startswith(("FOVEA_", "PYTHON"))}
    where |= {"PYTHONPATH": os.pathsep.join((str(tree), str(libraries))), "COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-S", *map(str, words)]
    return subprocess.run(command, cwd=tree, env=where, capture_output=True, text=True, check=False)


def examine(libraries, tree=ROOT):
    """The answers of a tree's core with these libraries."""
    done = run_alone(libraries, "-W", "ignore", "-m", "tests.core_alone.examine", tree=tree)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The libraries of this environment without plug-ins."""
    return link_libraries(tmp_path_factory.mktemp("alone") / "libraries", with_core=True)


@pytest.fixture(scope="module")
def alone(libraries):
    """Messages of the core in an environment without plug-ins."""
    return examine(libraries)


def check_core(alone):
    """Check that it starts and shows no trace of a plug-in."""
    assert alone["plugins"] == []
    points = [value for group in alone["entries"].values() for value in group]
    assert points
    assert all(value.startswith(("services.", "shared.", "fovea.")) for value in points)
    brought = {kind: {name for plugin in KNOWN.values() for name in plugin[kind]} for kind in ("models", "paths")}
    for service, found in alone["services"].items():
        assert found["models"], service
        assert not brought["models"].intersection(found["models"]), service
        assert not brought["paths"].intersection(found["paths"]), service
    assert alone["gateway"]["linked"] == []


def test_the_core_imports_starts_and_shows_no_trace_of_a_plug_in(alone):
    check_core(alone)
    listed = re.findall(r"^│ ([a-z-]+) ", alone["commands"]["help"], re.MULTILINE)
    assert {"segment", "up"} <= set(listed)
    assert not {verb for plugin in KNOWN.values() for verb in plugin["commands"]}.intersection(listed)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_request_for_a_known_plug_in_is_answered_with_how_to_install_it(alone, name):
    hint = f"pip install fovea-{name}"
    for path, (status, text) in alone["gateway"]["answers"][name].items():
        assert (status, hint in text) == (404, True), (path, text)
    for service, found in alone["services"].items():
        for path, text in found["answers"][name].items():
            assert hint in text, (service, path, text)
    for model, text in alone["models"][name].items():
        assert hint in text, model
    for verb, text in alone["commands"]["answers"][name].items():
        assert hint in text, verb


@pytest.mark.release
def test_the_core_passes_its_tests_alone(libraries):
    quick = "not slow and not e2e and not browser and not release and not timed"
    done = run_alone(libraries, "-m", "pytest", "-q", "-n", "0", "-m", quick, "fovea", "shared", "services")
    assert done.returncode == 0, done.stdout[-6000:]
