"""Images have what their services and plug-ins need and no more: hashes, extras, and one CUDA major for GPUs."""

import json
import re
import sys
import tomllib
from functools import cache
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from shared.registry.discovery import SERVICES
from tests.deploy.tools import ROOT, run, script

hashes, plugins = script("hashes"), script("plugins")
KNOWN = hashes.read_hashes(hashes.FILE.read_text("utf8"))
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["optional-dependencies"]
MAJOR = "13"


def needed(extras, package="fovea-platform"):
    """Names of all packages that a package with these extras needs here, as far as they are installed."""
    found, waiting = set(), [(package, frozenset(extras))]
    while waiting:
        name, asked = waiting.pop()
        if (name, asked) in found:
            continue
        found.add((name, asked))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            environments = [{"extra": extra} for extra in asked or [""]]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                waiting.append((hashes.normalise(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in found} - {"fovea-serve", "fovea-platform"}


@pytest.mark.parametrize("extra", ["gateway", *SERVICES])
def test_every_package_of_an_image_has_hashes(extra):
    names = needed([extra] if extra == "gateway" else [extra, "cpu", "cluster"])
    assert len(names) > 20
    libraries = {hashes.normalise(Requirement(line).name) for line in plugins.list_requirements(extra)}
    assert {name for name in names if hashes.is_hashed(name)} | libraries <= KNOWN.keys()


@pytest.mark.parametrize("service", ["medical-seg", "vision-restoration"])
def test_the_flavour_without_torch_needs_nothing_of_it(service):
    names = needed([service, "cluster"]).union(*(needed([], Requirement(line).name) for line in GROUPS["onnx"]))
    assert "onnxruntime" in names
    assert ({name for name in names if not hashes.is_hashed(name)}, names - KNOWN.keys()) == (set(), set())


def test_each_requirement_has_hashes_no_marker_and_the_version_of_the_constraints():
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf8"), re.MULTILINE))
    pins = {hashes.normalise(name): version for name, version in pins.items()}
    assert {name: version for name, (version, _) in KNOWN.items() if pins.get(name, version) != version} == {}
    assert len(KNOWN.keys() & pins.keys()) > 100
    for name, (version, text) in KNOWN.items():
        assert re.fullmatch(r"\S+==\S+ (\\\n    --hash=sha256:[0-9a-f]{64} ?)+", text.rstrip()), name
        assert f"=={version} " in text


def test_a_version_without_hashes_ends_the_build():
    report = {"install": [{"metadata": {"name": "AIOHTTP", "version": KNOWN["aiohttp"][0]}}]}
    assert hashes.select(report, KNOWN).startswith("aiohttp==")
    others = ("torch", "nvidia-nccl-cu13", "fovea")
    report["install"] += [{"metadata": {"name": name, "version": "1"}} for name in others]
    assert hashes.select(report, KNOWN).count("==") == 1
    report["install"].append({"metadata": {"name": "numpy", "version": "0.1"}})
    with pytest.raises(SystemExit, match=r"no hashes of numpy==0\.1"):
        hashes.select(report, KNOWN)


HIDDEN = """
import importlib.abc, importlib.metadata, json, os, sys, traceback

class Hidden(importlib.abc.MetaPathFinder):
    names = ()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not among what the extras bring", name=name)

sys.meta_path.insert(0, Hidden())
cases = json.loads(sys.argv[1])
"""
"""Takes away the modules that `Hidden.names` names; `cases` has them by service."""

STARTS = (
    HIDDEN
    + """
points, some = importlib.metadata.entry_points, importlib.metadata.EntryPoints
importlib.metadata.entry_points = lambda **which: some(p for p in points(**which) if p.dist.name == "fovea-platform")

def start(service):
    if service == "gateway":
        import services.gateway.__main__, shared.serving.health_check
        return
    import shared.serving.worker, shared.serving.drain, shared.serving.health_check
    from shared.registry.discovery import servables
    from shared.serving.replica import load_app
    servables(service)
    load_app(service)

def start_apart(case):
    if not os.fork():
        Hidden.names = set(cases[case])
        try:
            start(case.partition(" ")[0])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.wait()[1] == 0, case

services = cases.keys() - {"gateway"}
for case in cases.keys() - services:
    start_apart(case)
Hidden.names = set().union(*(cases[case] for case in services))
import shared.serving.__main__  # once for all: with what each of them has
for case in services:
    start_apart(case)
"""
)
QUICK = (
    "gateway", "medical-seg onnx", "vision-restoration onnx", "detection cpu", "llm-longctx cpu",
    "relevance-judge cpu",
)  # fmt: skip
LARGER = ("medical-seg cpu", "vision-restoration cpu", "interpretability cpu")  # as others in part

find_owners = cache(metadata.packages_distributions)


def hidden_modules(extras):
    """Top-level modules that only packages bring which these extras do not need."""
    kept = needed(extras) | {"fovea-serve", "fovea-platform", "pip", "setuptools"}
    return sorted(name for name, owners in find_owners().items() if kept.isdisjoint(map(hashes.normalise, owners)))


@pytest.mark.parametrize("cases", [QUICK, pytest.param(LARGER, marks=pytest.mark.release)], ids=["quick", "larger"])
def test_a_service_starts_with_what_its_extras_bring(cases):
    hidden = {case: hidden_modules(set(case.split())) for case in cases}
    assert all("pytest" in names for names in hidden.values())
    done = run(sys.executable, "-c", STARTS, json.dumps(hidden))
    assert done.returncode == 0, done.stderr[-1500:]


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


@pytest.mark.parametrize(("service", "folders", "requirements"), [
    ("detection", ["net", "road"], ["gpx", "scipy>=1"]), ("medical-seg", ["net"], ["gpx", "scipy>=1"]),
    ("gateway", ["canary", "road"], ["redis"]), ("llm-longctx", [], []),
])  # fmt: skip
def test_an_image_has_what_brings_something_to_its_service(tree, service, folders, requirements):
    assert plugins.list_folders(service, tree) == [f"./plugins/{name}" for name in folders]
    assert plugins.list_requirements(service, tree) == requirements


def test_what_the_gateway_loads_of_plug_ins_needs_its_own_libraries_alone():
    program = """
Hidden.names = set(cases["gateway"])
from fovea.plugins import load_all
loaded = [*load_all("fovea.pages"), *load_all("fovea.traffic"), *load_all("fovea.routes", "gateway")]
print(*loaded, "torch" in sys.modules)
"""
    hidden = [name for name in hidden_modules({"gateway"}) if not name.startswith("fovea")]
    done = run(sys.executable, "-c", HIDDEN + program, json.dumps({"gateway": hidden}))
    assert done.returncode == 0, done.stderr[-1500:]
    *loaded, has_torch = done.stdout.split()
    assert {"sessions", "study", "survey", "answers", "gateway.rollouts"} <= set(loaded)
    assert has_torch == "False"


def test_tensorrt_is_an_extra_of_its_own_and_all_are_of_one_cuda_major():
    assert not any("tensorrt" in one for one in GROUPS["gpu"])
    assert all(f"-cu{MAJOR}-" in one for one in GROUPS["tensorrt"])
    # Names that are asked for or pinned.
    asked = [*GROUPS["gpu"], *GROUPS["tensorrt"]]
    asked += [line for file in ROOT.glob("requirements*.txt") for line in file.read_text("utf8").splitlines()]
    found = {match[0]: match[1] for one in asked if (match := re.match(r"[\w.-]+-cu(\d\d)\b", one.strip()))}
    assert found
    assert set(found.values()) == {MAJOR}, found
    [onnx] = [one for one in GROUPS["gpu"] if one.startswith("onnxruntime-gpu")]
    assert re.search(r">=1\.(2[7-9]|[3-9]\d)", onnx), f"{onnx}: up to 1.26 it is built with CUDA 12"
