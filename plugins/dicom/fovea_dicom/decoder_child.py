"""GDCM and libjpeg in a process of their own: the only decoders of lossless JPEG and JPEG-LS that many machines have.

Some damaged files make GDCM end the whole process that it runs in, with every other caller's request, and libjpeg take
all memory. `python -m fovea_dicom.decoder_child` is the child: it reads objects of one frame and writes arrays, each
behind its length.
"""

import io
import os
import resource
import select
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders import base as decoders
from pydicom.pixels.utils import pixel_array

from fovea_dicom.geometry import count_frames
from shared.settings import environment

CHILD_MEMORY_BYTES = 2 * 2**30
"""Address space of the child."""
LIMIT_S = 60.0
"""Seconds for a frame."""
LENGTH_BYTES = 8
JPEGS = (
    decoders.JPEGBaseline8BitDecoder, decoders.JPEGExtended12BitDecoder, decoders.JPEGLosslessDecoder,
    decoders.JPEGLosslessSV1Decoder, decoders.JPEGLSLosslessDecoder, decoders.JPEGLSNearLosslessDecoder,
)  # fmt: skip
JPEG_2000S = decoders.JPEG2000Decoder, decoders.JPEG2000LosslessDecoder
DESCRIPTION = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
"""What a decoder must know of a frame; nothing else, such as a patient's name, goes to the child."""


def remove_unsafe_decoders() -> frozenset[str]:
    """Remove GDCM and libjpeg from pydicom's decoders in this process; return the syntaxes that they decode.

    pylibjpeg is libjpeg for these JPEGs only; for others it is OpenJPEG or a decoder of run lengths.
    """
    for name, those in {"gdcm": (*JPEGS, *JPEG_2000S), "pylibjpeg": JPEGS}.items():
        for decoder in those:
            if name in decoder.available_plugins:
                decoder.remove_plugin(name)
    return frozenset(str(decoder.UID) for decoder in (*JPEGS, *JPEG_2000S))


class DecoderChild:
    """Decodes frames in a child process, which starts with the first frame, and anew after a frame that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, dataset: FileDataset, index: int) -> NDArray[Any]:
        """The pixels of a frame of an encapsulated object, as pydicom's `pixel_array` returns them.

        Raises ValueError: the frame can't be decoded.
        """
        question = _pack(dataset, index)
        with self._lock:
            answer = self._ask(question)
        if not answer:
            raise ValueError("No decoder reads the frame.")
        return cast("NDArray[Any]", np.load(io.BytesIO(answer), allow_pickle=False))

    def _ask(self, question: bytes) -> bytes:
        """The child's answer; empty if it can't decode the frame, takes too long, or was ended by it."""
        if self._child is None:
            self._child = subprocess.Popen(  # our own interpreter
                [sys.executable, "-m", "fovea_dicom.decoder_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # messages of decoders may quote the file
                env=environment(),
                start_new_session=True,  # Ctrl-C is for its parent, whose end closes its input
            )
        to_child, from_child = cast("IO[bytes]", self._child.stdin), cast("IO[bytes]", self._child.stdout)
        with suppress(OSError):
            _send(to_child, question)
            if select.select([from_child], [], [], LIMIT_S)[0] and (answer := _receive(from_child)) is not None:
                return answer
        child, self._child = self._child, None
        child.kill()
        with suppress(OSError):
            child.communicate()
        return b""


def _pack(dataset: FileDataset, index: int) -> bytes:
    """A frame as an object of its own, without what says whose it is."""
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    tables = offsets if all(offsets) else None
    data = get_frame(dataset.PixelData, index, number_of_frames=count_frames(dataset), extended_offsets=tables)
    one = Dataset()
    for name in DESCRIPTION:
        if name in dataset:
            one[name] = dataset[name]
    one.PixelData = encapsulate([data])
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    out = io.BytesIO()
    one.save_as(out)
    return out.getvalue()


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """What the other side sent, None if it is gone."""
    head = pipe.read(LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    data = pipe.read(length)
    return data if len(head) == LENGTH_BYTES and len(data) == length else None


def main() -> None:
    """Decode what is asked for until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what decoders print must not get between the answers
    while (question := _receive(sys.stdin.buffer)) is not None:
        out = io.BytesIO()
        with suppress(Exception):  # whatever a decoder raises means that it can't decode the frame
            np.save(out, pixel_array(dcmread(io.BytesIO(question), force=True), index=0))
        _send(answers, out.getvalue())


DECODER_CHILD = DecoderChild()
"""The child of this process."""


if __name__ == "__main__":
    main()
