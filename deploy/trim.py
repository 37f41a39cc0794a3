"""Makes an installed service smaller: removes from an image's environment what serving never reads.

    PYTHON deploy/trim.py SERVICE       PYTHON is the environment's own; run it last, and never on one you develop in

Removed are tests of packages, headers and static libraries, Ray's Java, C++ and training parts, data of OpenCV, weights
of other services, symbol tables of compiled modules, and bytecode. Copies of a shared library become links. Then all
that a process of the service imports as it starts is imported once, which shows that nothing is missing and writes the
bytecode that is read; what is imported later or never stays without. Runs with Python's own library.
"""

import hashlib
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

NEVER_READ = (
    *("**/tests", "**/*.a", "**/*.pdb", "**/*.pyi", "cv2/data/*.xml", "numpy/_core/include", "nvidia/*/include"),
    "nvidia/*/lib/libcusolverMg.so*",  # one problem on several GPUs
    "nvidia/*/lib/libnvrtc.alt.so*",
    "onnxruntime/capi/libonnxruntime.so.*",  # for programs in C; Python's module holds all of it
    *("onnxruntime/transformers", "ray/cpp", "ray/jars", "ray/llm", "ray/rllib"),
    *("torch/bin/protoc*", "torch/include", "torch/share", "torch/test"),
    "triton/backends/nvidia/lib/cupti*",  # for its profiler
    "triton/instrumentation",
)
"""Patterns of files and folders under site-packages."""

STILL_READ = ("numpy/_core/tests/__init__.py", "numpy/_core/tests/_natype.py")
"""Files in folders of tests that modules next to them import."""

LOADED_LATER = (
    *("onnxruntime", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "uvicorn.lifespan.on", "uvicorn.loops.uvloop"),
    *("uvicorn.protocols.http.httptools_impl", "uvicorn.protocols.websockets.auto"),
)
"""Modules that a replica imports only when it loads a model or listens."""

READS_ALL_WEIGHTS = "interpretability"
"""The service that studies the models of others."""

RAY_STARTS = (
    *("ray._private.workers.default_worker", "ray._private.workers.setup_worker", "ray.autoscaler._private.monitor"),
    *("ray.dashboard.agent", "ray.dashboard.dashboard", "ray.scripts.scripts", "ray.serve._private.controller"),
    *("ray.serve._private.proxy", "ray._private.log_monitor", "ray._private.runtime_env.agent.runtime_env_agent"),
)
"""Programs of Ray, besides what our own import."""


def main(service: str) -> None:
    """Trim the environment that runs this file."""
    site, root = Path(sysconfig.get_path("purelib")), Path(sys.prefix)
    before = size(root)
    remove_never_read(site)
    keep_weights_of(site, service)
    link_copies(site)
    for file in list(elf_files(site)):
        drop_symbols(file)
    remove_bytecode(root)
    import_what_starts(service)
    print(f"{root}: {before / 1e6:.0f} MB before, {size(root) / 1e6:.0f} MB after")  # the build log


def size(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() or file.is_symlink())


def remove_never_read(site: Path) -> None:
    """Remove what `NEVER_READ` names, less `STILL_READ`."""
    kept = {name: (site / name).read_bytes() for name in STILL_READ if (site / name).exists()}
    for pattern in NEVER_READ:
        for found in list(site.glob(pattern)):
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            elif found.exists() or found.is_symlink():
                found.unlink()
    for name, content in kept.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)


def keep_weights_of(site: Path, service: str) -> None:
    """Remove weights of all services but one; their manifests stay, which Cards read as they are imported."""
    for weights in list((site / "services").glob("*/weights/*.safetensors")):
        if service not in {weights.parent.parent.name.replace("_", "-"), READS_ALL_WEIGHTS}:
            weights.unlink()


def link_copies(site: Path) -> None:
    """Make links of copies of a shared library in one folder: a wheel can't hold links, so it repeats the file."""
    seen: dict[tuple[Path, str], Path] = {}
    for file in sorted(elf_files(site), key=lambda path: (len(path.name), path.name), reverse=True):
        if ".so" not in file.name:
            continue
        key = (file.parent, hashlib.sha256(file.read_bytes()).hexdigest())
        if (first := seen.setdefault(key, file)) is not file:
            file.unlink()
            file.symlink_to(first.name)


def elf_files(folder: Path) -> Iterator[Path]:
    """Compiled modules, libraries and programs of a folder."""
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            if file.is_symlink() or file.stat().st_size < 4096:  # a page: nothing to win
                continue
            with file.open("rb") as stream:
                if stream.read(6) == b"\x7fELF\x02\x01":
                    yield file


def drop_symbols(file: Path) -> None:
    """Cut the end of a 64-bit little-endian ELF file behind its last loaded byte: symbol tables and section headers.

    The loader reads program headers only. Stack traces of compiled code lose their names.
    """
    with file.open("r+b") as stream:
        header = bytearray(stream.read(64))
        (offset,) = struct.unpack_from("<Q", header, 32)
        entry, count = struct.unpack_from("<HH", header, 54)
        stream.seek(offset)
        table = stream.read(entry * count)
        end = 64
        for place in range(0, entry * count, entry):
            begin, _, _, length = struct.unpack_from("<QQQQ", table, place + 8)
            end = max(end, begin + length)
        struct.pack_into("<Q", header, 40, 0)  # where section headers begin
        struct.pack_into("<HH", header, 60, 0, 0)  # how many there are, and which one names them
        stream.seek(0)
        stream.write(header)
        stream.truncate(max(end, offset + entry * count))


def remove_bytecode(folder: Path) -> None:
    """Remove all caches of bytecode."""
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache)


def import_what_starts(service: str) -> None:
    """Import what processes import as they start, ours and Ray's in a process each; `SystemExit` if one is missing."""
    if service == "gateway":
        programs = [["services.gateway.__main__", "shared.serving.health_check"]]
    else:
        discover = f"shared.registry.discovery; shared.registry.discovery.servables({service!r})"
        app = f"shared.serving.replica; shared.serving.replica.load_app({service!r})"
        replica = ["shared.serving.__main__", "shared.serving.worker", "shared.serving.drain", discover, app]
        later = [name for name in LOADED_LATER if importlib.util.find_spec(name.partition(".")[0])]
        starts = [[name] for name in ("shared.serving.ray", *RAY_STARTS)]
        programs = [[*replica, *later, "shared.serving.health_check"], *starts]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for names in programs:
        lines = "\n".join(f"import {name}" for name in names)
        command = [sys.executable, "-c", lines]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", env=env)  # noqa: S603  # ours
        if done.returncode:
            raise SystemExit(f"{', '.join(names)} can't be imported any more:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
