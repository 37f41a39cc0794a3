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


def deep(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 65_536, (height, width, channels)).astype(np.uint16)


def opened(data: bytes) -> PictureFile:
    return read_image(data, DEFAULT_BOUNDS)


def saved(kind: str, image: Image.Image | None = None, **more: object) -> bytes:
    out = io.BytesIO()
    (image or Image.fromarray((deep() >> 8).astype(np.uint8))).save(out, kind, **more)
    return out.getvalue()


def exif(**tags: object) -> Image.Exif:
    found = Image.Exif()
    found[MAKE] = "Retina"
    if "turn" in tags:
        found[ORIENTATION] = tags["turn"]
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
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    again = opened(deep_png(PictureFile(deep(), "png", icc=profile, exif=exif().tobytes())))
    assert again.icc == profile
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
def test_exif_is_kept_and_says_upright(kind, form):
    again = Image.open(io.BytesIO(write_image(opened(saved(kind, exif=exif(turn=6))), form, 90)))
    assert again.size == (6, 9)
    assert again.getexif()[MAKE] == "Retina"
    assert again.getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_the_colour_profile_is_kept(form):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert opened(write_image(opened(saved("PNG", icc_profile=profile)), form, 90)).icc == profile


def test_profiles_of_other_colours_and_further_frames_are_left_out_and_said_so():
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
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


@pytest.mark.parametrize(("form", "width"), [("webp", 16_384), ("jpeg", 65_536)])
def test_sides_that_a_format_does_not_have_are_refused_by_name(form, width):
    with pytest.raises(InvalidOption) as caught:
        write_image(PictureFile(np.zeros((1, width, 3), np.uint8), "png"), form, 90)
    assert caught.value.field == "format"


def test_16_bits_in_a_format_of_8_are_refused_by_name():
    with pytest.raises(InvalidOption) as caught:
        write_image(PictureFile(deep(), "png"), "jpeg", 90)
    assert caught.value.field == "bit_depth"
