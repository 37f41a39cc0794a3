"""Makes the stubs of this folder from `proto/`: `python -m shared.rpc.generate`. The stubs are committed.

Needs grpcio-tools of the `dev` extra. Only messages are generated: the service is served under another name than its
package says (docs/adr/0003-open-inference.md), so the handlers are built by hand from the descriptor.
"""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path

__all__ = ["PROTOS", "STUBS", "generate"]

STUBS = Path(__file__).parent
PROTOS = STUBS.parents[1] / "proto"

_HEADER = "# mypy: ignore-errors\n"  # protoc's type stubs leave generic mappings bare, which strict mypy refuses


def generate(into: Path = STUBS) -> list[Path]:
    """Write `<name>_pb2.py` and its type stub for every file of `proto/`; return what was written.

    Raises:
        RuntimeError: protoc refused a file (it says why on stderr).
    """
    from grpc_tools import protoc  # noqa: PLC0415 - a development tool: serving images do without

    sources = sorted(PROTOS.glob("*.proto"))
    known = importlib.resources.files("grpc_tools") / "_proto"
    options = [f"--proto_path={PROTOS}", f"--proto_path={known}", f"--python_out={into}", f"--pyi_out={into}"]
    if protoc.main(["protoc", *options, *map(str, sources)]):
        message = f"protoc failed on {', '.join(s.name for s in sources)}"
        raise RuntimeError(message)
    for stub in into.glob("*_pb2.pyi"):
        stub.write_text(_HEADER + stub.read_text())
    return [into / f"{source.stem}_pb2{suffix}" for source in sources for suffix in (".py", ".pyi")]


if __name__ == "__main__":
    for path in generate():
        sys.stdout.write(f"{path.relative_to(PROTOS.parent)}\n")
