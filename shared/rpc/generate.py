"""Generator of the protobuf stubs in this folder, from `proto/`: `python -m shared.rpc.generate`.

The stubs are committed. Needs grpcio-tools of the `dev` extra. Only messages are generated: the service is served under
another name than its package says (docs/adr/0003-open-inference.md), so the handlers are built from the descriptor.
"""

import importlib.resources
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STUBS = Path(__file__).parent
PROTOS = STUBS.parents[1] / "proto"

_HEADER = "# mypy: ignore-errors\n"  # protoc's type stubs leave generic mappings bare, which strict mypy refuses
# Where each message lies in the descriptor: only copies of single descriptors, in pure Python, read these lines.
_OFFSETS = re.compile(r"^if not _descriptor\._USE_C_DESCRIPTORS:\n(?:  .*\n)+", re.MULTILINE)


def generate_stubs() -> Iterator[tuple[Path, str]]:
    """Path and text of `<name>_pb2.py` and its types, for every file of `proto/`; `RuntimeError` if one is refused."""
    from grpc_tools import protoc  # noqa: PLC0415 - a development tool: serving images do without

    sources = sorted(PROTOS.glob("*.proto"))
    known = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--proto_path={PROTOS}", f"--proto_path={known}", f"--python_out={folder}", f"--pyi_out={folder}"]
        if protoc.main(["protoc", *options, *map(str, sources)]):
            raise RuntimeError(f"protoc failed on {', '.join(source.name for source in sources)}")
        for stub in sorted(Path(folder).iterdir()):
            text = stub.read_text("utf8")
            yield STUBS / stub.name, _HEADER + text if stub.suffix == ".pyi" else _OFFSETS.sub("", text)


if __name__ == "__main__":
    for path, text in generate_stubs():
        path.write_text(text, "utf8")
        sys.stdout.write(f"{path.name}\n")
