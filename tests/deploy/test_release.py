"""`make release` on a small repository: real wheels, chart, checksums and provenance, and refusals by name."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from shared.registry.discovery import SERVICES
from tests.deploy.tools import ROOT, helm, needs_helm, run, script

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "{version}"
[tool.setuptools]
py-modules = ["{name}"]
"""


def git(root: Path, *words: str) -> str:
    return run("git", *words, cwd=root, check=True).stdout


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    for folder, name in ((root, "small"), (root / "plugins/more", "small_more")):
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PROJECT.format(name=name, version="0.2.0"))
        (folder / f"{name}.py").write_text("VALUE = 7\n")
    chart = root / "deploy/helm/fovea"
    chart.mkdir(parents=True)
    (chart / "Chart.yaml").write_text('apiVersion: v2\nname: small\nversion: 0.2.0\nappVersion: "0.2.0"\n')
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## [0.2.0] - 2026-12-01\n")
    (root / "constraints.txt").write_text("")
    images = root / "deploy/images.sh"
    images.write_text('#!/bin/sh\necho "$1 $FLAVOUR $REVISION" > "$SAVE/fovea-$1.tar"\n')
    images.chmod(0o755)
    (root / ".gitignore").write_text("out\n")
    git(root, "init", "--quiet")
    for name in ("user.name", "user.email"):  # of the project: a machine may have none
        git(root, "config", name, "a@example.org")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "all")
    return root


def release(root: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = "import sys, release, pathlib; release.main(pathlib.Path(sys.argv.pop(1)))"
    return run(sys.executable, "-c", code, root, *words, cwd=ROOT / "deploy", env={**os.environ, **env})


@needs_helm
def test_a_release_is_whole_checked_and_the_same_again_with_images_where_the_tools_are(project, monkeypatch, capsys):
    tools = project.parent / "tools"
    tools.mkdir()
    for name in ("git", "tar"):
        (tools / name).symlink_to(shutil.which(name))
    out, path = project / "out/release/0.2.0", f"{tools}{os.pathsep}{Path(helm()).parent}"
    done = release(project, "--tag", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "no images (buildah and podman not installed)" in done.stdout
    named = done.stdout.partition(f"SAVE={out} deploy/images.sh ")[2].strip().split("|")
    assert sorted(named) == sorted(["gateway", *SERVICES])
    names = {file.name for file in out.iterdir()}
    assert names == {
        "small-0.2.0-py3-none-any.whl", "small-0.2.0.tar.gz", "small_more-0.2.0-py3-none-any.whl",
        "small_more-0.2.0.tar.gz", "small-0.2.0.tgz", "fovea-0.2.0.cdx.json", "provenance.json", "SHA256SUMS",
    }  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True, capture_output=True)
    assert "small.py" in zipfile.ZipFile(out / "small-0.2.0-py3-none-any.whl").namelist()
    with tarfile.open(out / "small-0.2.0.tgz") as chart:
        assert "small/Chart.yaml" in chart.getnames()
    provenance = json.loads((out / "provenance.json").read_text())
    assert {one["name"] for one in provenance["subject"]} == names - {"provenance.json", "SHA256SUMS"}
    commit = provenance["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["gitCommit"]
    assert commit == git(project, "rev-parse", "HEAD").strip() == git(project, "rev-parse", "v0.2.0^{commit}").strip()
    bill = json.loads((out / "fovea-0.2.0.cdx.json").read_text())
    assert {"bomFormat": "CycloneDX", "specVersion": "1.6"}.items() <= bill.items()
    assert f"pkg:pypi/numpy@{version('numpy')}" in {one["purl"] for one in bill["components"]}
    wheels = [one for one in provenance["subject"] if one["name"].endswith(".whl")]
    for name in ("buildah", "podman"):
        (tools / name).symlink_to("/bin/true")
    done = release(project, "--images", "gateway,detection:onnx", PATH=f"{path}{os.pathsep}/bin")
    assert done.returncode == 0, done.stderr
    again = json.loads((out / "provenance.json").read_text())["subject"]
    assert [one for one in again if one["name"].endswith(".whl")] == wheels
    made = {one.name: one.read_text() for one in out.glob("*.tar")}
    assert made == {"fovea-gateway.tar": f"gateway cpu {commit}\n", "fovea-detection.tar": f"detection onnx {commit}\n"}
    assert "fovea-detection.tar" in (out / "SHA256SUMS").read_text()
    module, built = script("release"), []
    monkeypatch.setattr(module.Release, "build", lambda _, images: built.append(images))
    monkeypatch.setattr(sys, "argv", ["release", "--no-images"])
    module.main(project)
    assert (built, "It has no images (--no-images)" in capsys.readouterr().out) == ([[]], True)


@pytest.mark.parametrize(("file", "old", "new", "commit", "told"), [
    ("plugins/more/pyproject.toml", "0.2.0", "0.1.9", True, "more/pyproject.toml (0.1.9)"),
    ("deploy/helm/fovea/Chart.yaml", 'appVersion: "0.2.0"', 'appVersion: "0.1.0"', True, "appVersion (0.1.0)"),
    ("CHANGELOG.md", "[0.2.0] - 2026-12-01", "[Unreleased]", True, "has no section [0.2.0]"),
    ("small.py", "7", "8", False, "small.py"),
])  # fmt: skip
def test_a_tree_that_is_not_this_version_is_refused_by_name(project, file, old, new, commit, told):
    (project / file).write_text((project / file).read_text().replace(old, new))
    if commit:
        git(project, "commit", "--quiet", "--all", "--message", "change")
    done = release(project)
    assert done.returncode == 1
    assert told in done.stderr
    assert not (project / "out").exists()


def test_this_tree_has_one_version():
    module = script("release")
    found = module.Release(ROOT, ROOT / "out")
    assert {module._read_version(project / "pyproject.toml") for project in found.projects} == {found.version}
    assert f'appVersion: "{found.version}"' in (ROOT / "deploy/helm/fovea/Chart.yaml").read_text()
    assert f"version: {found.version}" in (ROOT / "CITATION.cff").read_text()
