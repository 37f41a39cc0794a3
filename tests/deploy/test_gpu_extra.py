"""The extra `gpu` resolves from PyPI alone, with one CUDA major throughout, and each library that it loads opens.

A stub stands for the driver's `libcuda.so.1`, which no package brings: every symbol that is asked for is in it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
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


OPEN = """
import ctypes, json, os, pathlib, sys

site = pathlib.Path(sys.argv[1])
ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
wheels = sorted(p for p in site.glob("nvidia/**/lib/*.so*") if p.is_file())
pending, errors = wheels, {}
while pending:  # in the order of their needs, which nobody writes down
    left, errors = [], {}
    for file in pending:
        try:
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            left.append(file)
            errors[file.name] = str(error)
    if len(left) == len(pending):
        break
    pending = left
for pattern in ("torch/lib/libtorch_cuda.so", "torch/lib/libc10_cuda.so", "triton/_C/libtriton.so",
                "onnxruntime/capi/libonnxruntime_providers_shared.so"):
    try:
        ctypes.CDLL(str(site / pattern), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        errors[pattern] = str(error)
print(json.dumps(errors), flush=True)
os._exit(0)  # what tidies up at the end would ask the driver
"""

PROVIDER = """
import ctypes, sys

sys.path.insert(0, sys.argv[1])
ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
import onnxruntime
from onnx import TensorProto, helper

onnxruntime.preload_dlls(directory="")
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
"""

OPTIONAL = ("nvshmem_", "libcufile_rdma")
"""Beginnings of names of libraries for clusters with InfiniBand or MPI, which are opened only there."""


def run_beside_stub(program: str, site: pathlib.Path, folder: pathlib.Path) -> str:
    """Output of a program next to a stub of the driver, which has each symbol that a library asks for and no device."""
    stub, symbols = folder / "libcuda.so.1", {"cuInit"}
    while True:
        source = "".join(f"int {name}(void) {{ return 100; }} /* no device */\n" for name in sorted(symbols))
        (folder / "stub.c").write_text(source)
        command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", stub, folder / "stub.c"]
        subprocess.run(command, check=True)
        command = [sys.executable, "-I", "-c", program, site, stub]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
        told = done.stdout + done.stderr
        asked = set(re.findall(r"undefined symbol: (cu[A-Z]\w*)", told))
        if not asked - symbols:
            return told
        symbols |= asked


def unopened(site: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
    """Libraries under a folder of packages that do not open, with the loader's reasons."""
    told = json.loads(run_beside_stub(OPEN, site, folder))
    return {name: why for name, why in told.items() if not name.startswith(OPTIONAL)}


@pytest.mark.release
def test_every_library_of_cuda_opens_with_a_stub_of_the_driver(tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", site]
    subprocess.run([*pip, *EXTRAS["gpu"]], check=True, env=PLAIN, timeout=3600)
    assert unopened(site, tmp_path) == {}
    # The provider opens only inside ONNX Runtime. Where it and all that it needs did, CUDA itself says what is missing.
    told = run_beside_stub(PROVIDER, site, tmp_path)
    assert "CudaCall" in told, told
    assert "cannot open shared object" not in told
