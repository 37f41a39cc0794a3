"""Images install by hash: every package that they need has hashes, of the version that was tested."""

import importlib.util
import pathlib
import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("hashes", ROOT / "deploy/hashes.py")
hashes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hashes)

KNOWN = hashes.read_hashes(hashes.FILE.read_text("utf8"))
EXTRAS = (
    "gateway", "medical-seg", "detection", "vision-restoration", "llm-longctx", "interpretability",
    "relevance-judge",
)  # fmt: skip


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


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_package_of_an_image_has_hashes(extra):
    names = needed([extra] if extra == "gateway" else [extra, "cpu", "cluster"])
    assert len(names) > 20
    assert {name for name in names if hashes.is_hashed(name)} - KNOWN.keys() == set()


@pytest.mark.parametrize("service", ["medical-seg", "vision-restoration"])
def test_the_flavour_without_torch_needs_nothing_of_it(service):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["optional-dependencies"]
    names = needed([service, "cluster"]).union(*(needed([], Requirement(line).name) for line in extras["onnx"]))
    assert "onnxruntime" in names
    assert {name for name in names if not hashes.is_hashed(name)} == set()
    assert names - KNOWN.keys() == set()


def test_versions_are_those_of_the_constraints():
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf8"), re.MULTILINE))
    pins = {hashes.normalise(name): version for name, version in pins.items()}
    assert {name: version for name, (version, _) in KNOWN.items() if pins.get(name, version) != version} == {}
    assert len(KNOWN.keys() & pins.keys()) > 100


def test_each_requirement_has_hashes_and_no_marker():
    for name, (version, text) in KNOWN.items():
        assert re.fullmatch(r"\S+==\S+ (\\\n    --hash=sha256:[0-9a-f]{64} ?)+", text.rstrip()), name
        assert f"=={version} " in text


def test_a_version_without_hashes_ends_the_build():
    report = {"install": [{"metadata": {"name": "AIOHTTP", "version": KNOWN["aiohttp"][0]}}]}
    assert hashes.select(report, KNOWN).startswith("aiohttp==")
    report["install"] += [
        {"metadata": {"name": name, "version": "1"}} for name in ("torch", "nvidia-nccl-cu13", "fovea")
    ]
    assert hashes.select(report, KNOWN).count("==") == 1
    report["install"].append({"metadata": {"name": "numpy", "version": "0.1"}})
    with pytest.raises(SystemExit, match=r"no hashes of numpy==0\.1"):
        hashes.select(report, KNOWN)
