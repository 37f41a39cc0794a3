"""The restorer, its route, and its files: all 16 bits, profile and EXIF kept, orientation applied once."""

import io
import time

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from fovea.api.restore import RestoreIn
from fovea.errors import Cancelled, DeadlineExceeded, InvalidOption, NotReady
from services.vision_restoration import carry_over, restorer
from services.vision_restoration.comparison_images import mean_change, subtract_result, to_8_bits, to_16_bits
from services.vision_restoration.image_io import PictureFile, deep_png, read_image, write_image
from services.vision_restoration.models.rrformer import RRFormerRestorer
from services.vision_restoration.restorer import Restorer
from services.vision_restoration.tiled_inference import plan_tiles
from shared.registry import CallContext
from shared.vision.draw import encode
from shared.vision.limits import DEFAULT_BOUNDS
from shared.vision.tiling import tiled
from tests.harness.models import client_of
from tests.harness.rendering import predict_as

PIECES = {"tile_core": 64, "tile_context": 128}


def photo(width: int = 90, height: int = 70, seed: int = 1) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].astype(np.uint8)


def restored(served, pixels: np.ndarray, run: CallContext | None = None, **options: object):
    (answer,) = served.predict([RestoreIn(image=encode(pixels), **options)], run or CallContext())
    return answer


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("size", [(90, 70), (33, 47), (1, 1), (5, 200), (64, 64)])
def test_the_result_has_the_size_of_the_picture(served, size):
    answer = restored(served, photo(*size))
    assert (answer.width, answer.height) == size
    assert pixels_of(answer.restored).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_result_is_what_torch_computes_clipped_and_truncated(served, slim, variant):
    pixels = photo()
    net = slim()
    net.net.variant = variant
    image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    with torch.no_grad():
        wanted = (tiled(net, image, core=512, context=128).clamp(0, 1) * 255).byte()[0].permute(1, 2, 0).numpy()
    answer = restored(served, pixels, variant=variant)
    assert answer.variant == variant
    assert np.abs(pixels_of(answer.restored).astype(int) - wanted).max() <= 1
    assert (pixels_of(answer.restored) != wanted).mean() < 0.01


def test_variants_not_learnt_are_named_details_stand_for_options_left_out_and_a_network_needs_its_tower(
    served, stored, load_from, tmp_path
):
    assert restored(served, photo()).notes == []
    assert "trained as paper" in restored(served, photo(), variant="released").notes[0]
    answer, defaults = restored(served, photo()), served.details()["defaults"]
    named = restored(served, photo(), variant=defaults["variant"], tile_context=defaults["tile_context"])
    assert (named.variant, named.restored) == (answer.variant, answer.restored)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/rrformer.safetensors").write_bytes(b"")
    with pytest.raises(NotReady, match="VGG19 tower", check=lambda e: "fovea import vgg19-features" in (e.hint or "")):
        load_from(stored, tmp_path)


def test_progress_is_told_per_tile_cancelling_stops_between_two_and_what_can_not_end_in_time_is_refused(
    served, monkeypatch
):
    told: list[tuple[float, str | None]] = []
    request = RestoreIn(image=encode(photo(150, 60)), **PIECES)
    served.predict([request, request], CallContext(report=lambda *news: told.append(news)))
    assert [note for _, note in told] == [f"tile {n} of 3" for n in (1, 2, 3)] * 2
    assert [fraction for fraction, _ in told] == pytest.approx([n / 6 for n in range(1, 7)])
    told.clear()
    run = CallContext(report=lambda *news: [told.append(news), run.cancel()])
    with pytest.raises(Cancelled):
        restored(served, photo(150, 60), run, **PIECES)
    assert [note for _, note in told] == ["tile 1 of 3"]
    opened, soon = served.engines.open("paper"), CallContext(deadline=time.monotonic() + 60)
    opened.pace = 1.0
    with monkeypatch.context() as slow:
        slow.setattr(restorer, "measure_pace", lambda _: 1.0)
        answer = restored(served, photo(), soon)
    assert restored(served, photo(), soon).restored is not None, "the pace is measured anew"
    assert isinstance(answer, DeadlineExceeded)
    assert "Prefer: respond-async" in (answer.hint or "")


def test_dry_run_estimates_by_the_pace_of_earlier_tiles_and_large_pictures_are_worked_on_in_a_copy(served, monkeypatch):
    told: list[float] = []
    answer = restored(served, photo(150, 60), CallContext(report=lambda f, _: told.append(f)), dry_run=True, **PIECES)
    estimate = answer.estimate
    assert (answer.restored, told) == (None, [])
    assert (estimate.tiles, estimate.tile_core, estimate.tile_context) == (3, 64, 128)
    assert min(estimate.seconds, estimate.memory_mib) > 0
    restored(served, photo(150, 60))
    pace = served.engines.open("paper").pace
    estimate = restored(served, photo(150, 60), dry_run=True).estimate
    assert estimate.seconds == pytest.approx(pace * 160 * 64, abs=0.01)
    monkeypatch.setitem(carry_over._MAX_PIXELS, "auto", 4000)
    auto, full = (restored(served, photo(150, 60), resolution=kind) for kind in ("auto", "full"))
    assert [(one.width, one.height) for one in (auto, full)] == [(150, 60)] * 2
    assert "copy of 100×40 pixels" in auto.notes[0]
    assert full.notes == []
    few, many = (restored(served, photo(150, 60), resolution=kind, dry_run=True).estimate for kind in ("auto", "full"))
    assert few.seconds < many.seconds, "both by the pace of the same tiles"
    assert pixels_of(auto.restored).shape == pixels_of(full.restored).shape == (60, 150, 3)


@pytest.mark.parametrize(("budget", "core"), [(64, 64), (256, 384), (1024, 1056), (100_000, 2048)])
def test_the_core_is_the_largest_that_memory_allows(budget, core):
    how = plan_tiles(4320, 7680, "paper", RestoreIn(image=b"", memory_mib=budget), 600)
    assert how.core == core
    assert how.largest * 600 <= budget * 2**20
    assert (core + 32 + 256) ** 2 * 600 > budget * 2**20 or core == 2048


def test_a_picture_of_one_tile_is_not_cut_and_a_budget_below_one_is_refused():
    how = plan_tiles(300, 500, "released", RestoreIn(image=b""), 3600)
    assert (how.tiles, how.core, how.context) == (1, 512, 96)
    assert how.area == 320 * 512
    with pytest.raises(InvalidOption, match="at least", check=lambda e: e.field == "memory_mib"):
        plan_tiles(5000, 5000, "paper", RestoreIn(image=b"", memory_mib=64), 20_000)


def test_references_give_psnr_and_ssim_where_their_size_fits(served):
    pixels = photo()
    answer = restored(served, pixels, reference=encode(pixels_of(restored(served, pixels).restored)))
    assert (answer.likeness.psnr, answer.likeness.ssim) == (None, 1.0)
    assert answer.input_likeness.psnr < 40
    assert answer.input_likeness.ssim < 1
    answer = restored(served, photo(), reference=encode(photo(50, 50)))
    assert isinstance(answer, InvalidOption)
    assert (answer.field, "50×50" in answer.detail) == ("reference", True)
    answer = restored(served, photo(40, 8), reference=encode(photo(40, 8)))
    assert (answer.likeness.ssim, answer.input_likeness.psnr) == (None, None)


def test_reflection_is_input_minus_result_in_both_depths_and_pictures_are_drawn_on_demand(served):
    pixels = photo()
    answer = restored(served, pixels, include="restored,reflection,comparison")
    result = pixels_of(answer.restored)
    assert np.array_equal(pixels_of(answer.reflection), np.clip(pixels.astype(int) - result, 0, 255))
    assert answer.mean_change == pytest.approx(np.abs(pixels.astype(int) - result).mean() / 255, abs=1e-5)
    assert pixels_of(answer.comparison).shape == (70, 188, 3)
    given, result = photo(seed=1), photo(seed=2)
    assert np.array_equal(to_8_bits(to_16_bits(given)), given)
    assert to_16_bits(np.full((1, 1, 3), 255, np.uint8)).max() == 65_535
    deep = to_16_bits(given), to_16_bits(result)
    assert np.array_equal(to_8_bits(subtract_result(*deep)), subtract_result(given, result))
    assert mean_change(*deep) == pytest.approx(mean_change(given, result))
    for more in ({"include": ("reflection",)}, {"dry_run": True}):
        _, made = predict_as(served, RestoreIn(image=encode(photo()), picture="restored", **more), "image/png")
        assert np.array_equal(pixels_of(made), pixels_of(restored(served, photo()).restored))
    answer = restored(served, photo(1200, 32), include="comparison", format="jpeg")
    assert pixels_of(answer.comparison).shape[1] <= 2048 + 8


def test_deep_pictures_stay_deep_and_other_depths_and_forms_are_refused(served):
    given = PictureFile(to_16_bits(photo() // 2) + np.uint16(7), "png")
    (answer,) = served.predict([RestoreIn(image=write_image(given, "png", 90))], CallContext())
    result = read_image(answer.restored, DEFAULT_BOUNDS).pixels
    assert (answer.bit_depth, result.dtype) == (16, np.uint16)
    assert (result % 257 != 0).any()
    shallow = restored(served, to_8_bits(given.pixels))
    assert np.abs(to_8_bits(result).astype(int) - pixels_of(shallow.restored)).max() <= 2
    answer = restored(served, photo(), format="jpeg", bit_depth="16")
    assert (type(answer), answer.field) == (InvalidOption, "bit_depth")
    deep = restored(served, photo(), bit_depth="16")
    assert read_image(deep.restored, DEFAULT_BOUNDS).pixels.dtype == np.uint16
    given = write_image(PictureFile(to_16_bits(photo()), "png"), "png", 90)
    (answer,) = served.predict([RestoreIn(image=given, format="jpeg")], CallContext())
    assert (answer.format, answer.bit_depth) == ("jpeg", 8)


EXAMPLE = (RRFormerRestorer.folder.parent / "models" / "example.jpg").read_bytes()
SIZE = Image.open(io.BytesIO(EXAMPLE)).size


@pytest.fixture(scope="module")
def client(stored, tmp_path_factory):
    class Pane(Restorer):
        folder = stored
        card = RRFormerRestorer.card

    with client_of(tmp_path_factory.mktemp("fovea"), "vision-restoration", {"rrformer": Pane}) as made:
        yield made


@pytest.mark.parametrize(("asked", "shown"), [
    ("", "restored"), ("?include=comparison", "comparison"), ("?include=restored,comparison", "restored"),
    ("?picture=comparison", "comparison"),
])  # fmt: skip
def test_accept_gives_the_restored_picture_or_what_is_included(client, asked, shown):
    headers = {"content-type": "image/jpeg", "accept": "image/webp"}
    reply = client.post(f"/v1/restore{asked}", content=EXAMPLE, headers=headers)
    assert reply.headers["content-type"] == "image/webp"
    width = np.asarray(Image.open(io.BytesIO(reply.content))).shape[1]
    assert width == (2 * SIZE[0] + 8 if shown == "comparison" else SIZE[0])


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


def test_16_bits_of_ours_and_of_others_stay_16_as_rgb_with_exif_and_profile():
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
    pixels = deep(70, 900)
    theirs = cv2.imdecode(np.frombuffer(deep_png(PictureFile(pixels, "png")), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(theirs[..., ::-1], pixels)
    pixels = deep()
    ok, data = cv2.imencode(".png", pixels[..., ::-1])
    assert ok
    found = opened(data.tobytes())
    assert np.array_equal(found.pixels, pixels)
    assert found.notes == []


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


def test_profiles_of_other_colours_further_frames_and_facts_about_a_tiff_itself_are_left_out():
    profile = bytearray(PROFILE)
    profile[16:20] = b"CMYK"
    found = opened(saved("JPEG", Image.new("CMYK", (8, 8)), icc_profile=bytes(profile)))
    assert (found.icc, "profile" in found.notes[0]) == (None, True)
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    found = opened(saved("TIFF", pages[0], save_all=True, append_images=pages[1:]))
    assert (found.pixels[0, 0].tolist(), found.notes) == ([255, 0, 0], ["Only the first frame was read."])
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
    with pytest.raises(InvalidOption, check=lambda e: e.field == field):
        write_image(PictureFile(pixels, "png"), form, 90)
