"""The extra `gpu` resolves from PyPI alone, with one CUDA major throughout."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.deploy.tools import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["optional-dependencies"]
MAJOR = "13"

PLAIN = {key: value for key, value in os.environ.items() if key not in {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"}} | {
    "PIP_CONFIG_FILE": os.devnull
}
"""Pip as it is without anybody's configuration."""


def majors(report: dict) -> dict[str, str]:
    """CUDA majors by package: in its name, in the version of the runtime, or in what ONNX Runtime asks for."""
    found = {}
    for entry in report["install"]:
        name, version = entry["metadata"]["name"].lower(), entry["metadata"]["version"]
        if named := re.search(r"-cu(\d\d)", name):
            found[name] = named[1]
        elif name in {"nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-cublas", "cuda-bindings", "cuda-toolkit"}:
            found[name] = version.partition(".")[0]
        elif name == "onnxruntime-gpu":
            asked = " ".join(entry["metadata"].get("requires_dist", []))
            found |= {f"{name}, {one}": one for one in re.findall(r"nvidia-cudnn-cu(\d\d)", asked)}
    return found


def test_tensorrt_is_an_extra_of_its_own_and_all_are_of_one_cuda_major():
    assert not any("tensorrt" in one for one in EXTRAS["gpu"])
    assert all(f"-cu{MAJOR}-" in one for one in EXTRAS["tensorrt"])
    # Names that are asked for or pinned; the release suite resolves their own requirements.
    asked = [*EXTRAS["gpu"], *EXTRAS["tensorrt"]]
    asked += [line for file in ROOT.glob("requirements*.txt") for line in file.read_text("utf8").splitlines()]
    found = {match[0]: match[1] for one in asked if (match := re.match(r"[\w.-]+-cu(\d\d)\b", one.strip()))}
    assert found
    assert set(found.values()) == {MAJOR}, found
    [onnx] = [one for one in EXTRAS["gpu"] if one.startswith("onnxruntime-gpu")]
    assert re.search(r">=1\.(2[7-9]|[3-9]\d)", onnx), f"{onnx}: up to 1.26 it is built with CUDA 12"


@pytest.mark.release
def test_the_extra_resolves_from_pypi_alone_with_one_cuda_major(tmp_path):
    report = tmp_path / "report.json"
    asked = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", report]
    subprocess.run([*asked, *EXTRAS["gpu"]], check=True, env=PLAIN, timeout=900)
    found = majors(json.loads(report.read_text()))
    assert {"nvidia-cuda-runtime", f"onnxruntime-gpu, {MAJOR}", f"nvidia-cudnn-cu{MAJOR}"} <= found.keys()
    assert set(found.values()) == {MAJOR}, found
