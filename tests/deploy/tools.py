"""Programs that tests of `deploy` run: its scripts, and helm from PATH or from a wheel (unpacked once, by the venv)."""

import importlib.util
import io
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CARRIER = "aws_cdk"


def run(*command, check=False, **more):
    return subprocess.run(command, capture_output=True, text=True, check=check, **more)


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"deploy/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def helm() -> str | None:
    if found := shutil.which("helm"):
        return found
    target = pathlib.Path(sys.prefix) / "bin" / "helm"
    if target.exists():
        return str(target)
    if (packed := _layer()) is None:
        return None
    with zipfile.ZipFile(io.BytesIO(packed)) as layer:
        target.write_bytes(layer.read("helm/helm"))
    target.chmod(0o755)
    return str(target)


def _layer() -> bytes | None:
    spec = importlib.util.find_spec(CARRIER)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for archive in pathlib.Path(place).glob("lambda_layer_kubectl_*/_jsii/*.tgz"):
            with tarfile.open(archive) as tar:
                member = tar.extractfile("package/lib/layer.zip")
                return member.read() if member else None
    return None


needs_helm = pytest.mark.skipif(helm() is None, reason="no helm: neither on PATH nor in the carrier wheel")
