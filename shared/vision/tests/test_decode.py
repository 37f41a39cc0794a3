"""Every picture that users send is read upright in RGB, and every bad one is refused for the reason it has."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fovea.errors import BadInput, Malformed, TooLarge, UnsupportedMedia
from shared.vision.decode import READABLE, decode
from shared.vision.format_detection import detect_format, webp_canvas
from shared.vision.limits import DecodeBounds
from tests.bad_pictures import CORNERS, encoded, odd, quadrants, refused

ODD = {picture.name: picture for picture in odd()}
REFUSED = {picture.name: picture for picture in refused()}


@pytest.mark.parametrize("name", ODD)
def test_odd_picture_is_read_upright_in_rgb(name):
    sample = ODD[name]
    found = decode(sample.data)
    assert (found.width, found.height) == sample.size
    assert (found.pixels.dtype, found.pixels.shape) == (np.uint8, (*sample.size[::-1], 3))
    if not sample.plain:
        corners = found.pixels[[6, 6, -7, -7], [6, -7, 6, -7]].astype(int)
        assert np.abs(corners - np.array(list(CORNERS.values()))).max() <= 12


@pytest.mark.parametrize("name", REFUSED)
def test_bad_picture_is_refused_with_its_status(name):
    with pytest.raises(BadInput) as caught:
        decode(REFUSED[name].data)
    assert caught.value.status == REFUSED[name].status
    assert caught.value.detail.endswith(".")


GROWTH = """
import resource
from fovea.errors import BadInput
from shared.vision.decode import decode
from tests.bad_pictures import odd, refused
samples = [p for p in refused() if p.name.startswith("bomb")]
decode(next(p.data for p in odd() if p.name == "png"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for sample in samples:
    try:
        raise SystemExit(f"was read: {decode(sample.data)}")
    except BadInput:
        continue
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_bomb_grows_the_process_by_nothing():
    # Pillow allocates pixels outside Python's own allocator, so the process is asked too, in MiB.
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30


def test_limits_are_inclusive_and_named_with_the_value():
    with pytest.raises(TooLarge, match=r"400,000,000 in all; the limit is 64,000,000"):
        decode(REFUSED["bomb-png"].data)
    with pytest.raises(TooLarge, match=r"bytes; the limit is 100"):
        decode(ODD["png"].data, DecodeBounds(bytes=100))
    with pytest.raises(TooLarge, match=r"64×48 pixels; the longest side may have 63"):
        decode(ODD["png"].data, DecodeBounds(max_side=63))
    with pytest.raises(Malformed, match=r"shortest side must have at least 49"):
        decode(ODD["png"].data, DecodeBounds(min_side=49))
    found = decode(ODD["png"].data, DecodeBounds(bytes=len(ODD["png"].data), pixels=64 * 48, min_side=48, max_side=64))
    assert found.width == 64


def test_refusal_says_what_was_detected():
    names = {"gif": "GIF", "pdf": "PDF", "text-as-png": "text", "html-as-jpeg": "HTML", "json": "JSON"}
    for name, said in names.items():
        with pytest.raises(UnsupportedMedia, match=f"found {said}") as caught:
            decode(REFUSED[name].data)
        assert all(kind in caught.value.hint for kind in READABLE)


@pytest.mark.parametrize(("head", "said"), [
    (b"\0\0\0\x18ftypheic", "HEIC"), (b"\0\0\0\x18ftypavif", "AVIF"), (b"\0\0\0\x18ftypisom", "MP4 video"),
    (b"RIFF\0\0\0\0AVI ", "RIFF audio or video"), (b"\0" * 128 + b"DICM", "DICOM"),
    (b"\xef\xbb\xbf  <svg>", "SVG"), ("ä".encode() * 400, "text"), (b"x" + "ä".encode() * 400, "text"),
    (b"\xc3", "unknown binary data"),
])  # fmt: skip
def test_signature_is_recognised_and_the_canvas_of_every_kind_of_webp(head, said):
    assert detect_format(head) == said
    for options in ({}, {"lossless": True}, {"lossless": True, "exif": b"Exif\0\0"}):
        assert webp_canvas(encoded(quadrants(70, 50), "WEBP", **options)) == (70, 50)


def test_alpha_and_transparent_colours_are_flattened_on_white():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.abs(decode(encoded(half, kind, **options)).pixels.astype(int) - 127).max() <= 1
    gone, grey, palette = Image.new("RGBA", (4, 4), (255, 0, 0, 0)), Image.new("L", (4, 4), 9), quadrants().quantize(4)
    for data in (encoded(gone, "PNG"), encoded(grey, "PNG", transparency=9)):
        assert (decode(data).pixels == 255).all()
    data = encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert (decode(data).pixels[0, 0] == 255).all()


def test_sixteen_bits_keep_their_high_byte():
    assert decode(ODD["16-bit-rgb-png"].data).pixels[0, 0].tolist() == [0x40, 0x80, 0xC0]
    deep = Image.fromarray(np.array([[0x0102, 0xFFFF]], np.uint16))
    for kind in ("PNG", "TIFF"):
        found = decode(encoded(deep, kind))
        assert (found.pixels[0].tolist(), found.bit_depth) == ([[1, 1, 1], [255, 255, 255]], 16)


def test_twelve_bits_are_spread_over_all_shades_and_a_deep_negative_is_turned_around():
    facts = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 110, 277: 1, 279: 3}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in facts.items())
    packed = struct.pack("<2sHIH", b"II", 42, 8, len(facts)) + tags + bytes(4) + b"\x10\x2f\xff"
    assert decode(packed).pixels[0].tolist() == [[16] * 3, [255] * 3]
    out = io.BytesIO()
    tifffile.imwrite(out, np.array([[0x0102, 0xFFFF]], np.uint16), photometric="miniswhite")
    assert decode(out.getvalue()).pixels[0].tolist() == [[254] * 3, [0] * 3]


def test_facts_of_the_file_are_kept_and_broken_exif_does_not_cost_the_picture():
    found = decode(ODD["exif-6-jpeg"].data)
    assert (found.format, found.mode, found.bit_depth, found.orientation) == ("JPEG", "RGB", 8, 6)
    assert (decode(ODD["exif-8-tiff"].data).orientation, decode(ODD["cmyk-jpeg"].data).mode) == (8, "CMYK")
    assert decode(ODD["16-bit-rgb-png"].data).bit_depth == 16
    assert decode(encoded(quadrants(), "PNG", icc_profile=b"profile")).icc == b"profile"
    found = decode(encoded(quadrants(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05broken"))
    assert found.orientation == 1
    several = {name: decode(ODD[name].data).first_of_many for name in ("animated-png", "animated-webp", "paged-tiff")}
    assert several == dict.fromkeys(several, True)
    assert not decode(ODD["tiff"].data).first_of_many


@given(
    name=st.sampled_from(["png", "jpeg", "webp", "tiff", "bmp", "lzw-tiff", "exif-6-jpeg", "animated-png"]),
    edits=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(0, 3000),
)
def test_damaged_bytes_are_read_or_refused_but_never_crash(name, edits, end):
    data = bytearray(ODD[name].data)
    for place, value in edits:
        data[place % len(data)] = value
    try:
        found = decode(bytes(data[: len(data) - end % len(data)]), DecodeBounds(pixels=1_000_000))
    except BadInput:
        return
    assert found.pixels.shape[2] == 3


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
def test_channels_of_16_bits_that_are_stored_apart_are_read_as_those_side_by_side(options, channels):
    pixels, out = np.random.default_rng(5).integers(0, 65_536, (channels, 20, 33), np.uint16), io.BytesIO()
    pixels[3:] = 65_535
    apart = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [2][: channels - 3]}
    tifffile.imwrite(out, pixels, **apart, **options)
    assert np.array_equal(decode(out.getvalue()).pixels, (pixels[:3] >> 8).transpose(1, 2, 0))
