"""The form of an upload: its file, the file's name and its purpose. Knows multipart forms; knows no store."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from fovea.errors import Malformed


async def parse_upload(headers: Headers, body: bytes) -> tuple[str, str, bytes]:
    """Name, purpose and bytes of an upload. Raises Malformed: it is not a form with `file` and `purpose`."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Malformed("An upload is a form (multipart/form-data) with file and purpose.", field="file")
    try:
        form = await MultiPartParser(headers, pieces(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Malformed("The form can't be read.", field="file") from error
    try:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile) or not isinstance(purpose, str):
            field = "file" if isinstance(purpose, str) else "purpose"
            raise Malformed("An upload needs file and purpose.", field=field)
        return (file.filename or "file")[:200], purpose[:40], await file.read()
    finally:
        await form.close()
