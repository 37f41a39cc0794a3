"""Bodies of several DICOM files: `multipart/related` of DICOMweb (PS3.18 8.7) in and out, and zip archives in."""

import io
import secrets
import zipfile
from collections.abc import Iterable, Sequence
from email.message import Message
from typing import NamedTuple

from fovea.errors import FoveaError, Malformed, TooLarge

DICOM = "application/dicom"

MAX_FILES = 2000
MAX_UNPACKED_BYTES = 2**30
"""Bytes that an archive, or the deflated files of a request together, may hold."""


MIN_BYTES = 16
"""Of a file without a preamble."""


def is_dicom(data: bytes, *, bare: bool = False) -> bool:
    """Whether bytes carry DICOM's mark; or, `bare`, begin with an element of group 2 or 8, without a preamble."""
    tagged = bare and len(data) > MIN_BYTES and data[:2] in {b"\x02\x00", b"\x08\x00", b"\x00\x08"}
    return data[128:132] == b"DICM" or tagged


class NamedFile(NamedTuple):
    """A file, and the name that its sender knows it by."""

    name: str
    data: bytes


def number_files(files: Iterable[bytes]) -> list[NamedFile]:
    """Name files without names by their places."""
    return [NamedFile(f"File {place}", data) for place, data in enumerate(files, 1)]


def parse_related(content_type: str, body: bytes) -> list[bytes]:
    """The parts of a body, without their headers.

    Raises Malformed: the content type names no boundary, or the body does not keep to it.
    """
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/related" or not isinstance(boundary, str) or not boundary:
        raise Malformed("The body must be multipart/related with a boundary.", field="content-type")
    mark = b"--" + boundary.encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise Malformed("The body does not end with its boundary; parts of it may be missing.", field="body")
    found = []
    for piece in pieces[1:-1]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        if not blank or len(head) > 8192:
            raise Malformed("A part of the body has no end to its header.", field="body")
        found.append(content)
    return found


def build_related(files: Sequence[bytes]) -> tuple[str, bytes]:
    """Content type and body of DICOM files."""
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
    body = b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
    return f'multipart/related; type="{DICOM}"; boundary={boundary}', body


def unpack_archives(files: Iterable[NamedFile]) -> list[NamedFile]:
    """Files, with those of zip archives among them in their places; see `unpack_zip`, whose limits hold for all."""
    found, room = list[NamedFile](), MAX_UNPACKED_BYTES
    for file in files:
        if not file.data.startswith(b"PK\3\4"):
            found.append(file)
            continue
        inside = unpack_zip(file.data, room, MAX_FILES - len(found))
        room -= sum(len(one.data) for one in inside)
        found += inside
    return found


def unpack_zip(data: bytes, room: int = MAX_UNPACKED_BYTES, count: int = MAX_FILES) -> list[NamedFile]:
    """Return the files of a zip archive.

    Raises Malformed: it is not a zip archive; TooLarge: it has more files than `count`, or more bytes than `room`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > count or sum(entry.file_size for entry in entries) > room:
                detail = f"Archives may hold {MAX_FILES} files and {MAX_UNPACKED_BYTES // 2**20} MB unpacked."
                raise TooLarge(detail)  # noqa: TRY301  # besides what it is about
            return [NamedFile(entry.filename, archive.read(entry)) for entry in entries]
    except FoveaError:
        raise
    except (
        Exception
    ) as error:  # broken bytes lead the reader and its four decompressors to a dozen unrelated exceptions
        raise Malformed("The archive can't be read as zip.", field="files") from error
