"""The distributions: the client alone, the platform without weights, and weights by licence, alone and side by side."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from shared.registry.weights import PACKAGES, read_manifest
from tests.core_alone.test_core_alone import ROOT, check_core, examine, link_libraries, run_alone
from tests.harness.serving import serve_in_thread

FOLDERS = {"fovea-serve": "fovea", "fovea-platform": ".", **{name: f"weights/{name}" for name in PACKAGES.values()}}
"""Distribution → folder of its project."""

FILES = {name: ROOT / folder / "pyproject.toml" for name, folder in FOLDERS.items()}
PROJECTS = {name: tomllib.loads(file.read_text("utf8")) for name, file in FILES.items()}
CLIENT_BYTES = 20_000_000
"""Most bytes of the client with all that it needs, without the bytecode that Python adds."""


def weights_of(name):
    """Weights that a project names, by pattern and package, as paths from the root."""
    tool = PROJECTS[name]["tool"]["setuptools"]
    (patterns,) = tool["package-data"].values()
    left_out = {ROOT / p.replace(".", "/") / one for p, o in tool.get("exclude-package-data", {}).items() for one in o}
    folders = [ROOT / package.replace(".", "/") for package in tool["packages"]]
    return {file for folder in folders for one in patterns for file in folder.glob(one)} - left_out


def test_projects_have_one_version_and_the_platform_asks_for_the_client_of_the_same():
    versions = {project["project"]["version"] for project in PROJECTS.values()}
    assert len(versions) == 1
    platform = PROJECTS["fovea-platform"]["project"]
    assert platform["dependencies"] == [f"fovea-serve=={versions.pop()}"]
    assert platform["optional-dependencies"]["weights"] == [f"fovea-weights=={platform['version']}"]
    assert platform["license"] == "Apache-2.0 AND MIT AND CC-BY-4.0"
    assert {name: PROJECTS[name]["project"]["name"] for name in FOLDERS} == {name: name for name in FOLDERS}


@pytest.mark.parametrize("file", sorted(ROOT.glob("plugins/*/pyproject.toml")), ids=lambda file: file.parent.name)
def test_a_plug_in_has_the_text_of_its_licence_and_asks_for_our_names(file):
    assert (file.parent / "LICENSE").resolve() == ROOT / "LICENSE"
    asked = {re.match(r"[a-z-]+", line)[0] for line in tomllib.loads(file.read_text("utf8"))["project"]["dependencies"]}
    assert asked & {"fovea-serve", "fovea-platform"}
    assert "fovea" not in asked


def test_the_client_s_project_lists_all_its_packages_and_weights_are_by_licence():
    files = (file for file in (ROOT / "fovea").rglob("*.py") if not {"tests", "build"} & set(file.parts))
    packages = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    assert packages == {*PROJECTS["fovea-serve"]["tool"]["setuptools"]["packages"]}
    found = {file: name for name in PACKAGES.values() for file in weights_of(name)}
    assert found.keys() == {*ROOT.glob("services/*/weights/*.safetensors")}
    for file, name in found.items():
        licence = read_manifest(file).licence
        assert (PACKAGES[licence], PROJECTS[name]["project"]["license"]) == (name, licence), file


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    tracked = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, tracked.split("\0")):  # a copy: a build leaves files in its tree
        if (ROOT / name).exists() and not name.startswith(("docs/", "loadtests/", "plugins/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    for folder in FOLDERS.values():
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source / folder]
        subprocess.run(command, check=True, capture_output=True)
    return {name: next(out.glob(f"{name.replace('-', '_')}-*.whl")) for name in FOLDERS}


def install(target, *wheels):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", target, *wheels], check=True)
    (target / "tests").symlink_to(ROOT / "tests")
    return target


@pytest.mark.release
def test_wheels_hold_what_their_names_say(wheels):
    names = {name: zipfile.ZipFile(wheel).namelist() for name, wheel in wheels.items()}
    tops = {name: {one.partition("/")[0] for one in files if ".dist-info" not in one} for name, files in names.items()}
    weights = {package: {"services"} for package in PACKAGES.values()}
    assert tops == {"fovea-serve": {"fovea"}, "fovea-platform": {"services", "shared"}, **weights}
    assert "fovea/py.typed" in names["fovea-serve"]
    assert not [one for files in names.values() for one in files if "tests" in Path(one).parts]
    weights = {name: {one for one in files if one.endswith(".safetensors")} for name, files in names.items()}
    for name, files in weights.items():
        wanted = weights_of(name) if name in PACKAGES.values() else set()
        assert files == {file.relative_to(ROOT).as_posix() for file in wanted}, name
    licences = [one for one in names["fovea-weights-kvasir-seg"] if "/licenses/" in one]
    assert {Path(one).name for one in licences} == {"LicenseRef-Kvasir-SEG-Research-Only.txt", "NOTICE"}
    attributed = [one for one in names["fovea-platform"] if one.endswith("models/NOTICE.md") and "/licenses/" in one]
    assert len(attributed) == 2


@pytest.mark.release
def test_the_client_installs_alone_and_small_and_calls_a_server(wheels, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    python = tmp_path / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", wheels["fovea-serve"]]
    subprocess.run(pip, check=True)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    assert not {"services", "shared", "numpy", "tests"} & {place.name for place in site.iterdir()}
    own = {place.name.partition("-")[0] for place in site.iterdir() if place.name.startswith("fovea")}
    assert own == {"fovea", "fovea_serve"}
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < CLIENT_BYTES
    version = PROJECTS["fovea-serve"]["project"]["version"]
    listed = {"data": [{"id": "eye", "created": 1, "task": "segment", "service": "stub", "ready": True}]}
    with serve_in_thread(Starlette(routes=[Route("/v1/models", lambda _: JSONResponse(listed))])) as url:
        commands = (
            [python, "-c", f"import fovea; print([model.id for model in fovea.Client({url!r}).models()])"],
            [tmp_path / "bin/fovea", "--version"],
            [tmp_path / "bin/fovea", "models", "--url", url],
        )
        run = [subprocess.run(one, cwd=tmp_path, check=True, capture_output=True, text=True).stdout for one in commands]
    assert run[:2] == ["['eye']\n", f"fovea {version}\n"]
    assert "eye" in run[2]


@pytest.mark.release
def test_the_core_s_wheels_alone_start_and_say_which_weights_are_missing(wheels, tmp_path):
    libraries = link_libraries(tmp_path / "libraries", with_core=False)
    site = install(tmp_path / "site", wheels["fovea-serve"], wheels["fovea-platform"])
    check_core(examine(libraries, site))
    said = run_alone(libraries, "-m", "fovea", "doctor", "--json", tree=site).stdout
    assert all(f'pip install {package}"' in said for package in PACKAGES.values())


SEGMENT = """
import sys
from pathlib import Path
from shared.registry import CallContext, LoadContext
from shared.registry.discovery import servables

for name, kind in servables("medical-seg").items():
    served = kind.load(LoadContext(cache=Path(sys.argv[1]), weights=Path(sys.argv[1])))
    (answer,) = served.predict([served.example()], CallContext())
    print(name, answer.area > 0)
"""


@pytest.mark.release
def test_wheels_side_by_side_segment_a_picture(wheels, tmp_path):
    libraries = link_libraries(tmp_path / "libraries", with_core=False)
    site = install(tmp_path / "site", *wheels.values())
    done = run_alone(libraries, "-c", SEGMENT, tmp_path / "cache", tree=site)
    assert done.stdout.splitlines()[-1:] == ["pranet-v2 True"], done.stderr[-2000:]
    assert "pranet True" in done.stdout.splitlines()


def test_wheels_of_plug_ins_hold_the_files_next_to_their_modules():
    command = ["git", "ls-files", "plugins/*/fovea_*"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    left_out = []
    for project in (ROOT / "plugins").glob("*/pyproject.toml"):
        told = tomllib.loads(project.read_text("utf8"))["tool"]["setuptools"].get("package-data", {}).get("*", [])
        files = [Path(name) for name in listed if name.startswith(f"plugins/{project.parent.name}/")]
        left_out += [one for one in files if not any(map(one.match, ("*.py", *told))) and "site/**" not in told]
    assert left_out == []
