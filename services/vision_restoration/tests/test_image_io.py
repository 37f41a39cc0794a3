"""Files in and out: all 16 bits, profile and EXIF kept, orientation applied once, what a format can't hold refused."""

import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from fovea.errors import InvalidOption
from services.vision_restoration.image_io import PictureFile, deep_png, read_image, write_image
from shared.vision.limits import DEFAULT_BOUNDS

ORIENTATION, MAKE = 0x0112, 0x010F
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def deep(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 65_536, (height, width, channels)).astype(np.uint16)


def opened(data: bytes) -> PictureFile:
    return read_image(data, DEFAULT_BOUNDS)


def saved(kind: str, image: Image.Image | None = None, **more: object) -> bytes:
    out = io.BytesIO()
    (image or Image.fromarray((deep() >> 8).astype(np.uint8))).save(out, kind, **more)
    return out.getvalue()


def exif(turn: int | None = None) -> Image.Exif:
    found = Image.Exif()
    found.update({MAKE: "Retina"} | ({ORIENTATION: turn} if turn else {}))
    return found


def test_16_bit_png_of_ours_and_of_others_keeps_all_bits():
    pixels = deep(70, 900)
    theirs = cv2.imdecode(np.frombuffer(deep_png(PictureFile(pixels, "png")), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(theirs[..., ::-1], pixels)
    pixels = deep()
    ok, data = cv2.imencode(".png", pixels[..., ::-1])
    assert ok
    found = opened(data.tobytes())
    assert np.array_equal(found.pixels, pixels)
    assert found.notes == []


def test_16_bits_stay_16_as_rgb_with_exif_and_profile():
    pixels = deep(channels=4)
    _, data = cv2.imencode(".png", pixels[..., [2, 1, 0, 3]])
    alpha = pixels[..., 3:] / 65_535
    wanted = pixels[..., :3] * alpha + 65_535 * (1 - alpha)
    found = opened(data.tobytes())
    assert np.abs(found.pixels - wanted).max() <= 1
    assert found.notes == ["The alpha channel was left out: what was transparent is white."]
    palette = Image.fromarray(np.eye(4, dtype=np.uint8) * 255).quantize(2)
    assert opened(saved("PNG", palette, transparency=0)).notes == found.notes
    grey = deep(channels=1)[..., 0]
    found = opened(saved("PNG", Image.fromarray(grey)))
    assert np.array_equal(found.pixels, np.repeat(grey[..., None], 3, axis=2))
    again = opened(deep_png(PictureFile(deep(), "png", icc=PROFILE, exif=exif().tobytes())))
    assert again.icc == PROFILE
    assert Image.Exif().tobytes() != again.exif
    assert Image.open(io.BytesIO(deep_png(again))).getexif()[MAKE] == "Retina"


@pytest.mark.parametrize(("mode", "key"), [("P", 0), ("L", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_colour_is_white_and_said(mode, key):
    plain = Image.new(mode, (9, 8), key)
    found = opened(saved("PNG", plain, transparency=key))
    assert (found.pixels == 255).all()
    assert found.notes == ["The alpha channel was left out: what was transparent is white."]
    assert opened(saved("PNG", plain)).notes == []


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_keeps_all_bits(compression, order):
    out = io.BytesIO()
    tifffile.imwrite(out, deep(), photometric="rgb", compression=compression, byteorder=order)
    assert np.array_equal(opened(out.getvalue()).pixels, deep())
    out, grey = io.BytesIO(), deep(channels=1)
    tifffile.imwrite(out, grey[..., 0], photometric="miniswhite", byteorder="<")
    assert np.array_equal(opened(out.getvalue()).pixels, np.repeat(~grey, 3, axis=2))


@pytest.mark.parametrize("turn", range(1, 9))
def test_deep_and_shallow_pictures_are_turned_alike(turn):
    pixels = np.asarray(deep())
    shallow = saved("PNG", Image.fromarray((pixels >> 8).astype(np.uint8)), exif=exif(turn=turn))
    tagged = deep_png(PictureFile(pixels, "png", exif=exif(turn=turn).tobytes()))
    assert np.array_equal(opened(tagged).pixels >> 8, opened(shallow).pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_the_colour_profile_is_kept_and_exif_which_says_upright(kind, form):
    again = write_image(opened(saved(kind, exif=exif(turn=6), icc_profile=PROFILE)), form, 90)
    picture = Image.open(io.BytesIO(again))
    assert (picture.size, opened(again).icc) == ((6, 9), PROFILE)
    assert (picture.getexif()[MAKE], picture.getexif().get(ORIENTATION, 1)) == ("Retina", 1)


def test_profiles_of_other_colours_and_further_frames_are_left_out_and_said_so():
    profile = bytearray(PROFILE)
    profile[16:20] = b"CMYK"
    found = opened(saved("JPEG", Image.new("CMYK", (8, 8)), icc_profile=bytes(profile)))
    assert (found.icc, "profile" in found.notes[0]) == (None, True)
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    found = opened(saved("TIFF", pages[0], save_all=True, append_images=pages[1:]))
    assert (found.pixels[0, 0].tolist(), found.notes) == ([255, 0, 0], ["Only the first frame was read."])


def test_a_tiff_hands_on_no_facts_about_its_own_file():
    found = opened(saved("TIFF", exif=exif()))
    tags = Image.Exif()
    tags.load(found.exif)
    assert set(tags) == {MAKE}


@pytest.mark.parametrize(
    ("pixels", "form", "field"),
    [
        (np.zeros((1, 16_384, 3), np.uint8), "webp", "format"), (np.zeros((1, 65_536, 3), np.uint8), "jpeg", "format"),
        (deep(), "jpeg", "bit_depth"),
    ],
    ids=["long webp", "long jpeg", "deep jpeg"],
)  # fmt: skip
def test_what_a_format_can_not_hold_is_refused_by_name(pixels, form, field):
    with pytest.raises(InvalidOption) as caught:
        write_image(PictureFile(pixels, "png"), form, 90)
    assert caught.value.field == field
