"""Bytes as they arrive → encoded frames: concatenated JPEGs, multipart, and files of many frames.

Memory: the frame that is arriving, never the stream; only files of many frames (GIF, TIFF, WebP, animated PNG, video),
whose frames lean on each other, are held whole. Knows nothing about detection; that a frame is broken is found by
whoever decodes it.
"""

import email.parser
import email.policy
import io
import re
from collections.abc import Callable, Iterator
from typing import Protocol

from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fovea.errors import InvalidOption, Malformed, TooLarge, UnsupportedMedia
from fovea_survey.video.video_decoder import BREAK_OFF, VideoFile, can_decode
from shared.vision.format_detection import detect_format, webp_canvas
from shared.vision.limits import DecodeBounds

_PARSERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
    "WebP": WebPImageFile,
    "PNG": PngImageFile,
}
"""Files that may hold many frames."""

_SOI = b"\xff\xd8\xff"
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of entropy-coded data: a marker that is neither a stuffed byte nor a restart."""

_BLANK = re.compile(rb"\r?\n\r?\n")
"""Where the headers of a part end."""

_FILMS = frozenset({"MP4 video", "Matroska video"})
"""Names by `detect_format` of the containers that are read."""

_FFMPEG = (
    "Turn it into JPEGs: ffmpeg -i FILE -f mjpeg - | curl --data-binary @- -H 'content-type: video/x-motion-jpeg' …"
)


class FrameParser(Protocol):
    """Finds frames in a stream: how many in all, 0 where that is not known.

    `gathering` holds the body until all of it is there.
    """

    frames: int
    gathering: bool

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Frames that are complete now that `data` has arrived."""

    def close(self) -> Iterator[bytes]:
        """The rest when the stream ends."""


def choose_parser(media: str, bounds: DecodeBounds) -> FrameParser:
    """The parser of a content type with its parameters; UnsupportedMedia if frames can't be found in that."""
    kind = media.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        return MultipartParser(media, bounds)
    if kind in {"image/jpeg", "video/x-motion-jpeg", "video/mjpeg", "video/x-mjpeg"}:
        return JpegParser(bounds)
    if kind.startswith(("image/", "video/")) or kind in {"", "application/octet-stream"}:
        return FileParser(bounds)
    raise UnsupportedMedia(f"No frames are found in a body of type {kind!r} here.", hint=_FFMPEG)


class JpegParser:
    """Concatenated JPEGs (Motion JPEG without a container).

    Markers are followed by their stated lengths, so that a thumbnail inside a frame does not end it. A frame that
    breaks off, and bytes between frames, come out as frames that nobody can decode.
    """

    frames, gathering = 0, False

    def __init__(self, bounds: DecodeBounds) -> None:
        self._bounds = bounds
        self._buffer = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Frames that are complete."""
        self._buffer += data
        while (end := self._end()) is not None:
            yield self._take(end)
        if len(self._buffer) > self._bounds.bytes:
            raise TooLarge(f"A frame has more than {self._bounds.bytes:,} bytes.", field="body")

    def close(self) -> Iterator[bytes]:
        """A last frame that breaks off."""
        if bytes(self._buffer).strip():
            yield self._take(len(self._buffer))

    def _take(self, end: int) -> bytes:
        frame = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._at = 0
        return frame

    def _end(self) -> int | None:
        """Where the first frame (or the garbage before it) ends; None while it is not all there."""
        if self._at:
            return self._walk()
        data = self._buffer
        del data[: len(data) - len(data.lstrip(b"\r\n \x00"))]
        if len(data) < len(_SOI):
            return None
        if not data.startswith(_SOI):
            return _found(data.find(_SOI))
        self._at = 2
        return self._walk()

    def _walk(self) -> int | None:
        """Go from marker to marker as far as the bytes reach; where the frame ends, None if that is not there yet."""
        data = self._buffer
        while (head := data[self._at : self._at + 2]) and len(head) == 2:
            if head[0] != 0xFF:
                return _found(data.find(_SOI, 2))  # broken: the next frame begins where one can
            if head[1] in {0xD8, 0xD9}:
                return self._at + (2 if head[1] == 0xD9 else 0)
            if head[1] == 0xFF or head[1] in _ALONE:
                self._at += 1 if head[1] == 0xFF else 2
            elif not self._skip(head[1]):
                break
        return None

    def _skip(self, marker: int) -> bool:
        """Go past a segment, and past the entropy-coded data behind a start of scan; False while it is not there."""
        if len(self._buffer) < self._at + 4:
            return False
        after = self._at + 2 + int.from_bytes(self._buffer[self._at + 2 : self._at + 4])
        if marker == 0xDA:
            found = _MARKER.search(self._buffer, after) if after <= len(self._buffer) else None
            if found is None:
                return False
            after = found.start()
        if after > len(self._buffer):
            return False
        self._at = after
        return True


class FileParser:
    """Splits a file of one or many frames once all of it is there; what starts as a JPEG is for `JpegParser`."""

    def __init__(self, bounds: DecodeBounds) -> None:
        self.frames = 0
        self._bounds = bounds
        self._buffer = bytearray()
        self._jpegs: JpegParser | None = None
        self.gathering = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Nothing, unless it turns out to be JPEGs."""
        if self._jpegs is None:
            self._buffer += data
            if len(self._buffer) > self._bounds.bytes:
                raise TooLarge(f"The file has more than {self._bounds.bytes:,} bytes.", field="body")
            if not self._buffer.startswith(_SOI):
                return
            self._jpegs, self.gathering, data = JpegParser(self._bounds), False, bytes(self._buffer)
            self._buffer.clear()
        yield from self._jpegs.feed(data)

    def close(self) -> Iterator[bytes]:
        """The frames of the file."""
        if self._jpegs is not None:
            yield from self._jpegs.close()
        elif self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            if (film := _film(data, self._bounds)) is not None:
                self.frames = film.count
                yield from film
            else:
                yield from read_pages(data, self._bounds)


class MultipartParser:
    """Parts of a multipart body (`x-mixed-replace`, `form-data`, `mixed`), each a picture or a file of many."""

    frames, gathering = 0, False

    def __init__(self, media: str, bounds: DecodeBounds) -> None:
        """Take the boundary from the content type. Raises Malformed: it has none."""
        named = re.search(r'boundary="?([^";,]+)"?', media, re.IGNORECASE)
        if named is None:
            raise Malformed("A multipart body needs a boundary in its content type.")
        name = named[1].strip().encode("latin-1", "replace")
        self._line = b"--" + name.removeprefix(b"--")
        self._bounds = bounds
        self._buffer = bytearray()
        self._inside = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Frames of parts that are complete."""
        self._buffer += data
        while (at := self._buffer.find(self._line)) >= 0:
            part, self._inside = (bytes(self._buffer[:at]) if self._inside else b""), True
            del self._buffer[: at + len(self._line)]
            yield from self._frames(part)
        if len(self._buffer) > self._bounds.bytes:
            raise TooLarge(f"A part has more than {self._bounds.bytes:,} bytes.", field="body")

    def close(self) -> Iterator[bytes]:
        """A last part that no boundary ends."""
        rest = bytes(self._buffer)
        if self._inside and not rest.strip().startswith(b"--") and rest.strip():
            yield from self._frames(rest)

    def _frames(self, part: bytes) -> Iterator[bytes]:
        head, _, body = _BLANK.sub(b"\n\n", part, count=1).partition(b"\n\n")
        body = body.removesuffix(b"\n").removesuffix(b"\r")
        if not body.strip():
            return
        _refuse_options(head.lstrip())
        if detect_format(body) == "JPEG":
            jpegs = JpegParser(self._bounds)
            yield from jpegs.feed(body)
            yield from jpegs.close()
        else:
            yield from _film(body, self._bounds) or read_pages(body, self._bounds)


def _refuse_options(head: bytes) -> None:
    """Options of a stream are in its address: a form field would come too late for the frames before it.

    Raises InvalidOption: the part is a form field and no file.
    """
    facts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + b"\r\n\r\n", headersonly=True)
    form = facts["content-disposition"]
    if form is not None and form.content_disposition == "form-data" and "filename" not in form.params:
        name = str(form.params.get("name", ""))
        hint = f"Write it into the address: /v1/detect/stream?{name}=…"
        raise InvalidOption("Options of a stream are no form fields.", hint=hint, field=name or "body")


def _film(data: bytes, bounds: DecodeBounds) -> VideoFile | None:
    """The file as a video; None where it is something else, UnsupportedMedia if it can't be decoded here."""
    kind = detect_format(data)
    if "video" not in kind:
        return None
    if kind not in _FILMS:
        raise UnsupportedMedia(f"Found {kind}; of videos MP4 and WebM are read.", hint=_FFMPEG)
    if not can_decode():
        raise UnsupportedMedia(f"Found {kind}, whose decoder is not installed here.", hint=_FFMPEG)
    return VideoFile(data, bounds)


def read_pages(data: bytes, bounds: DecodeBounds) -> Iterator[bytes]:
    """The frames of a file, each as a BMP; what can't hold many, or is broken, comes out as it is."""
    kind = detect_format(data)
    fits = kind != "WebP" or webp_canvas(data)[0] * webp_canvas(data)[1] <= bounds.pixels
    image = _opened(kind, data) if fits else None
    if image is None or image.width * image.height > bounds.pixels:
        yield data
        return
    index = 0
    while True:
        try:
            image.seek(index)
            frame, out = image.convert("RGB"), io.BytesIO()
        except EOFError:
            return
        except Exception:  # noqa: BLE001  # as many kinds of error as there are ways to break a file
            yield BREAK_OFF
            return
        frame.save(out, "BMP")
        yield out.getvalue()
        index += 1


def _opened(kind: str, data: bytes) -> ImageFile | None:
    """The file behind its parser; None where it can't be opened, or has only one frame."""
    try:
        image = _PARSERS[kind](io.BytesIO(data)) if kind in _PARSERS else None
        return image if getattr(image, "is_animated", False) else None  # which some parsers read the file for
    except Exception:  # noqa: BLE001  # decoding it says what is wrong, in the words of a single picture
        return None


def _found(at: int) -> int | None:
    return at if at > 0 else None
