"""Files of weights: GGUF."""

import tempfile
from pathlib import Path

import gguf
import numpy as np

from shared.lm.gguf_file import unpack
from tests.fuzz.harness import Harness, with_file


def _gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.gguf"
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_context_length(16)
        writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


_unpack = with_file(lambda file: unpack(file, file.parent / "cache"), ".gguf")
HARNESSES: dict[str, Harness] = {"gguf": Harness(_unpack, (_gguf(),))}
