"""Promises to a road authority: no place is guessed, each damage counts once, and nothing found is left out."""

import csv
import datetime as dt
import io
import json
import re
import shutil
import subprocess
import zipfile
from typing import Any

import numpy as np
import pytest
from defusedxml import ElementTree
from PIL import ExifTags, Image, TiffImagePlugin

from fovea.api.boxes import DetectIn
from fovea.errors import InvalidOption
from fovea_survey.counting import build_geojson, cut_segments, list_unplaced, merge_damage
from fovea_survey.places import find_place
from fovea_survey.placing import make_unique, place_pictures
from fovea_survey.schemas import Observation, RoadSegment, SeenObject
from fovea_survey.search import time_frame
from fovea_survey.video.flow import BoxCarrier
from plugins.survey.tests.films import slow_down, write_film
from plugins.survey.tests.test_stream_route import Watching
from plugins.survey.tests.test_survey import DEGREE_M, GPX, PAVEMENT, photograph, seen
from shared.vision.draw import encode
from tests.harness.models import client_of, ok

SVG = "{http://www.w3.org/2000/svg}"


def tagged(**changes: Any) -> bytes:
    """A photograph at 15.78 S, 47.93 W whose GPS tags are changed; None removes a tag."""
    image, exif = Image.open(io.BytesIO(photograph(-15.78, -47.93))), Image.Exif()
    gps = {**image.getexif().get_ifd(ExifTags.IFD.GPSInfo), **{ExifTags.GPS[name]: changes[name] for name in changes}}
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({tag: value for tag, value in gps.items() if value is not None})
    image.save(out := io.BytesIO(), "JPEG", exif=exif)
    return out.getvalue()


def angle(degrees: int, minutes: int = 0) -> tuple[Any, ...]:
    return tuple(TiffImagePlugin.IFDRational(value, 1) for value in (degrees, minutes, 0))


@pytest.mark.parametrize(("changes", "told"), [
    ({"GPSLatitudeRef": None}, "latitude is stated without N or S"),
    ({"GPSLongitudeRef": None}, "longitude is stated without E or W"),
    ({"GPSLatitudeRef": "\0"}, "without N or S"), ({"GPSLongitudeRef": "N"}, "without E or W"),
    ({"GPSLatitude": angle(95)}, "latitude 95 is impossible"),
    ({"GPSLongitude": angle(181)}, "longitude 181 is impossible"), ({"GPSLatitude": None}, "no GPS position"),
    ({"GPSLatitude": angle(15, 75)}, "minutes or seconds that are impossible"),
])  # fmt: skip
def test_a_position_that_is_not_fully_stated_is_not_guessed(changes, told):
    found = find_place(tagged(**changes))
    assert isinstance(found, str)
    assert told in found
    for whole in (find_place(tagged()), find_place(tagged(GPSLatitude=TiffImagePlugin.IFDRational(1578, 100)))):
        assert (whole.latitude, whole.longitude) == (pytest.approx(-15.78, abs=1e-6), pytest.approx(-47.93, abs=1e-6))


def far(name: str, latitude: float, longitude: float) -> Observation:
    return Observation(name=name, latitude=latitude, longitude=longitude)


def test_a_photograph_far_from_all_others_is_not_placed_but_two_areas_are():
    road = [seen(f"{n}.jpg", 40 * n) for n in range(8)]
    wrong = far("wrong.jpg", -50, 8)
    placed = place_pictures([*road[:4], wrong, *road[4:]], 10_000)
    assert ([one.name for one in placed.driven], list(placed.problems)) == ([one.name for one in road], [4])
    assert "10 km from nearly all others" in placed.problems[4]
    assert len(place_pictures([*road, wrong], 0).driven) == 9
    for metres, count in ((10_500, 1), (9_500, 0)):
        assert len(place_pictures([*road, far("n", 50 + (280 + metres) / DEGREE_M, 8)], 10_000).problems) == count
    both = place_pictures([*road, *[far(f"b{n}", 51 + n / 1000, 8) for n in range(8)]], 10_000)
    assert (len(both.driven), both.problems) == (16, {})
    assert "2 areas" in both.notes[0]
    alone = place_pictures([far("a", 1, 1), far("b", 40, 1)], 10_000)
    assert (len(alone.driven), len(alone.notes), place_pictures([], 10_000).driven) == (2, 1, [])
    edge = place_pictures([far("a", 0, 179.9999), far("b", 0, -179.9999), far("c", 0, 179.9998)], 10_000)
    assert len(edge.driven) == 3


def test_pictures_of_equal_name_stay_apart():
    five, one = seen("p00.jpg", 0, *["D40"] * 5), seen("p00.jpg", 250, "D40", second=9)
    driven = [five, seen("p01.jpg", 120, second=4), one]
    damages = merge_damage(driven, 3)
    assert len(damages) == 6
    assert [segment.damages for segment in cut_segments(driven, [None, 120, 130], damages, 100)] == [5, 1]
    assert make_unique(["a", "a", "b", "a (2)", "a"]) == ["a", "a (3)", "b", "a (2)", "a (4)"]
    # One picture of that name shows what the other does not: they may not merge into one, though they lie together.
    assert len(merge_damage([seen("p.jpg", 0, "D40", "D40"), seen("p.jpg", 1, "D40", second=1)], 3)) == 2


def test_the_segments_of_the_map_sum_to_the_damage():
    driven = [seen(f"{n}", 50 * n, "D40", second=n) for n in range(5)]  # the last lies at 200 m, where a segment ends
    lone = seen("lone", 5000, "D00", second=9)
    damages = merge_damage([*driven, lone], 0)
    segments = cut_segments([*driven, lone], [None, 50, 50, 50, 50, None], damages, 100)
    features = build_geojson(damages, segments, None)["features"]
    drawn = [one for one in features if one["properties"]["kind"] == "segment"]
    assert sum(one["properties"]["damages"] for one in drawn) == sum(one.damages for one in segments) == 6
    assert [one["geometry"]["type"] for one in drawn] == ["LineString", "LineString", "Point"]


def test_a_road_over_the_date_line_is_drawn_in_two_parts():
    lines = ([(179.9, 0.0), (-179.7, 0.004), (-179.6, 0.004)], [(-179.9, 0.0), (180.0, 0.001)])
    sides = [RoadSegment(start_m=0, end_m=9, line=line, damages=0, per_km=0) for line in lines]
    east, west = (one["geometry"] for one in build_geojson([], sides, None)["features"])
    assert east["type"] == west["type"] == "MultiLineString"
    assert east["coordinates"] == [[(179.9, 0.0), (180.0, 0.001)], [(-180.0, 0.001), (-179.7, 0.004), (-179.6, 0.004)]]
    assert west["coordinates"] == [[(-179.9, 0.0), (-180.0, 0.001)], [(180.0, 0.001), (180.0, 0.001)]]
    on_it = RoadSegment(start_m=0, end_m=0, line=[(180.0, 1.0), (-180.0, 1.0)], damages=0, per_km=0)
    assert build_geojson([], [on_it], None)["features"][0]["geometry"]["type"] == "MultiLineString"


def tracked(name: str, north_m: float, *tracks: str) -> Observation:
    one = seen(name, north_m)
    found = [SeenObject(label="D40", score=0.5, box=(0, 0, 1, 1), track=track) for track in tracks]
    return one.model_copy(update={"detections": found})


def test_a_track_is_one_damage_also_where_it_leaves_the_gpx_track():
    frames = [tracked(f"f#{n}", 2.2 * n, "a") for n in range(10)]
    assert len(merge_damage(frames, 3)) == 1
    assert len(merge_damage([one.model_copy(update={"detections": [one.detections[0]] * 2}) for one in frames], 3)) == 1
    both = [tracked(f"f#{n}", 2.2 * n, "a", "b") for n in range(10)]
    assert len(merge_damage(both, 3)) == 2
    again = [*(tracked(f"f#{n}", 2.2 * n, "a") for n in range(3)), tracked("f#9", 2.5, "b")]  # lost, and found again
    assert len(merge_damage(again, 3)) == 1
    lost = tracked("f#2", 0, "a", "b").model_copy(update={"latitude": None, "place_problem": "No track."})
    frames = [tracked("f#0", 0, "a"), tracked("f#1", 2, "a"), lost]
    placed = place_pictures(frames, 10_000)
    assert len(merge_damage(placed.driven, 3)) == 1
    (left,) = list_unplaced(frames, placed.problems)
    assert (left.pictures, left.reason) == (["f#2"], "No track.")


class Holes(Watching):
    """Finds dark squares: a detector whose answers the test knows."""

    side = 320

    def example(self) -> DetectIn:
        return DetectIn(image=encode(road()))


def road(*holes: tuple[int, int, int], shift: int = 0) -> np.ndarray:
    """A rough road of 240 × 320; holes are x, y and side, and everything moves down by `shift`."""
    grain = np.random.default_rng(1).integers(110, 200, (60 + 1000 // 4, 80), np.uint8)
    pixels = np.asarray(Image.fromarray(grain).resize((320, 1240), Image.Resampling.BILINEAR)).copy()
    for x, y, side in holes:
        pixels[y : y + side, x : x + side] = 10
    top = 1000 - shift
    return np.repeat(pixels[top : top + 240, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with client_of(tmp_path_factory.mktemp("fovea"), "detection", {"toy-detector": Holes}) as made:
        yield made


def test_a_film_counts_each_hole_once_though_it_moves_further_than_its_size(client, tmp_path):
    holes = ((60, 900, 24), (200, 820, 20), (120, 660, 24))
    film = write_film(tmp_path / "drive.mp4", [road(*holes, shift=6 * n) for n in range(70)])
    track = GPX.replace("10.001", "10.0002")  # 22 m in ten seconds: every tenth frame lies 2.2 m from the last
    files = [("video", ("drive.mp4", film)), ("gpx", ("drive.gpx", track.encode()))]
    found = ok(client.post("/v1/detect/survey", files=files, params={"every": 10, "boxed": True}))
    assert sum([len(one["detections"]) for one in found["observations"]]) > 6
    assert len(found["damages"]) == 3
    assert sum(one["boxed"] is not None for one in found["observations"]) <= 3
    assert all(one["severity"] == "low" for one in found["damages"])
    again = client.post("/v1/detect/survey", json={"observations": found["observations"]}).json()
    assert again["damages"] == found["damages"]


def test_a_film_is_placed_by_its_track(client, tmp_path, monkeypatch):
    film = write_film(tmp_path / "drive.mp4", [road()] * 21)
    files = [("video", ("drive.mp4", film)), ("gpx", ("drive.gpx", GPX.encode()))]
    found = ok(client.post("/v1/detect/survey", files=files, params={"every": 10}))["observations"]
    assert [one["name"] for one in found] == ["drive.mp4#0", "drive.mp4#10", "drive.mp4#20"]
    assert [one["latitude"] for one in found] == pytest.approx([10.0, 10.0001, 10.0002])
    later = {"every": 10, "fps": 5, "start": "2026-05-04T10:00:01Z"}
    slow = client.post("/v1/detect/survey", files=files, params=later).json()["observations"]
    assert [one["latitude"] for one in slow] == pytest.approx([10.0001, 10.0003, 10.0005])
    files[0] = ("video", ("telephone.mp4", slow_down(film, 10)))
    own = client.post("/v1/detect/survey", files=files, params={"every": 10}).json()["observations"]
    assert [one["latitude"] for one in own] == pytest.approx([10.0, 10.0001, 10.0006])
    cut = write_film(tmp_path / "cut.mkv", [road()] * 40)
    files[0] = ("video", ("cut.mkv", cut[: len(cut) // 2]))
    (told,) = ok(client.post("/v1/detect/survey", files=files, params={"every": 100}))["failed"]
    assert ("#0: " in told, "breaks off" in told) == (False, True)
    late = client.post("/v1/detect/survey", files=files, params={"every": 20, "fps": 1e-300})
    assert (late.status_code, "leaves the years" in late.text) == (422, True)
    for beyond in ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59-01:00"):
        with pytest.raises(InvalidOption, match="leaves the years"):
            time_frame(dt.datetime.fromisoformat(beyond), 2)
    monkeypatch.setattr("fovea_survey.search.MAX_FRAMES", 2)
    much = client.post("/v1/detect/survey", files=files, params={"every": 7})
    assert (much.status_code, "at most 2" in much.text) == (422, True)  # rather than a survey that ends too early
    for parts, field in ((files[:1], "gpx"), ([files[0], *files], "video"), ([*files, files[1]], "gpx")):
        refused = client.post("/v1/detect/survey", files=parts)
        assert (refused.status_code, refused.json()["field"]) == (422, field)


def test_boxes_follow_a_picture_that_moves_and_grows_and_leave_with_it():
    image = Image.fromarray(road((100, 1100, 40)))
    grown = image.transform(image.size, Image.Transform.AFFINE, (0.9, 0, 4, 0, 0.9, -6), Image.Resampling.BILINEAR)
    carrier = BoxCarrier()
    box = np.array([[90.0, 90, 150, 150]])
    assert carrier.step(encode(np.asarray(image)), box) == pytest.approx(box)
    moved = carrier.step(encode(np.asarray(grown)), box)
    assert moved[0] == pytest.approx([(90 - 4) / 0.9, (90 + 6) / 0.9, (150 - 4) / 0.9, (150 + 6) / 0.9], abs=2)
    assert carrier.step(b"broken", box) == pytest.approx(box)
    edge = np.array([[0.0, 200, 40, 239], [100, 40, 140, 80]])
    carrier = BoxCarrier()
    carrier.step(encode(road(shift=0)), edge)
    left = carrier.step(encode(road(shift=30)), edge)
    assert np.isnan(left[0]).all()
    assert left[1] == pytest.approx([100, 70, 140, 110], abs=2)


def place_photographs() -> list[tuple[str, tuple[str, bytes]]]:
    """Photographs with a hole each: two of equal name, one far away, one without a hemisphere, one without GPS."""

    def shot(data: bytes, *holes: tuple[int, int, int]) -> bytes:
        (exif := Image.open(io.BytesIO(data)).getexif()).get_ifd(ExifTags.IFD.GPSInfo)
        Image.fromarray(road(*holes)).save(out := io.BytesIO(), "JPEG", quality=95, exif=exif)
        return out.getvalue()

    small, large = (60, 1040, 24), (100, 1100, 90)
    rows = [
        ("a/p.jpg", shot(photograph(50, 8, 0), small)),
        ("b/p.jpg", shot(photograph(50 + 200 / DEGREE_M, 8, 10), large)),
        ("b/p.jpg", shot(photograph(50 + 400 / DEGREE_M, 8, 20), small, large)),
        ("far.jpg", shot(photograph(-50, 8, 30), small)),
        ("half.jpg", shot(tagged(GPSLatitudeRef=None), small)),
        ("plain.jpg", shot(PAVEMENT.read_bytes(), large, small)),
    ]
    return [("images", row) for row in rows]


def test_what_is_not_placed_is_counted_and_named(client):
    found = ok(client.post("/v1/detect/survey", files=place_photographs()))
    assert (found["counts"], found["counts_not_placed"]) == ({"crack": 4}, {"crack": 4})
    assert [one["pictures"] for one in found["not_placed"]] == [["far.jpg"], ["half.jpg"], ["plain.jpg"], ["plain.jpg"]]
    assert found["without_place"] == ["far.jpg", "half.jpg", "plain.jpg"]
    assert [text.partition(":")[0] for text in found["place_problems"]] == ["far.jpg", "half.jpg", "plain.jpg"]
    assert "N or S" in found["place_problems"][1]
    assert found["length_km"] == pytest.approx(0.4, rel=1e-3)
    assert [one["name"] for one in found["observations"]][1:3] == ["b/p.jpg", "b/p.jpg (2)"]
    assert [one["damages"] for one in found["segments"] if one["damages"]] == [1, 3]
    assert {one["severity"] for one in found["damages"]} == {"low", "high"}
    assert [one["geometry"] and one["geometry"]["type"] for one in found["geojson"]["features"]].count(None) == 4
    unplaced = client.post("/v1/detect/survey", files=place_photographs()[-1:], headers={"accept": "image/svg+xml"})
    assert "found, not placed: 2" in unplaced.text


def test_an_archive_holds_the_picture_of_each_damage_linked_from_map_geojson_and_csv(client):
    answer = client.post("/v1/detect/survey", files=place_photographs(), headers={"accept": "application/zip"})
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    pictures = {name for name in files if name.startswith("pictures/")}
    assert len(pictures) == 6
    assert all(Image.open(io.BytesIO(files[name])).size == (320, 240) for name in pictures)
    rows = list(csv.DictReader(io.StringIO(files["survey.csv"].decode())))
    assert ({row["picture"] for row in rows}, [row["place"] for row in rows].count("found")) == (pictures, 4)
    assert all(row["latitude"] == "" for row in rows if row["place"] != "found")
    features = [one["properties"] for one in json.loads(files["survey.geojson"])["features"]]
    assert {one["picture"] for one in features if one["kind"] == "damage"} == pictures
    links = [one.get("href") for one in ElementTree.fromstring(files["survey.svg"]).iter(f"{SVG}a")]
    assert sorted(links) == sorted(row["picture"] for row in rows if row["place"] == "found")
    assert "boxed" not in json.loads(files["survey.json"])["observations"][0]


def test_a_link_that_runs_a_script_is_refused_and_a_name_cannot_leave_the_archive(client):
    body = [json.loads(seen("../../x", 0, "D40").model_dump_json())]
    bad = client.post("/v1/detect/survey", json={"observations": [{**body[0], "picture": "javascript:alert(1)"}]})
    assert (bad.status_code, bad.json()["field"]) == (422, "observations.0.picture")
    body[0] |= {"picture": "../../etc/x", "boxed": "AAAA"}
    answer = client.post("/v1/detect/survey", json={"observations": body}, headers={"accept": "application/zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert [name for name in archive.namelist() if "survey" not in name] == ["pictures/0000-x.jpg"]


def test_damage_of_one_spot_is_drawn_dot_by_dot_with_its_number(client):
    spots = [seen(f"{n}", 30 * (n // 8), "D00" if n % 2 else "D40", second=n) for n in range(24)]
    body = {"observations": [json.loads(one.model_dump_json()) for one in spots], "merge_m": 0}
    text = client.post("/v1/detect/survey", json=body, headers={"accept": "image/svg+xml"}).text
    root = ElementTree.fromstring(text)
    dots = [one for one in root.iter(f"{SVG}circle") if one.find(f"{SVG}title") is not None]
    middles = np.array([[float(one.get("cx")), float(one.get("cy"))] for one in dots])
    apart = np.linalg.norm(middles[:, None] - middles[None], axis=2)[np.triu_indices(24, 1)]
    assert len(dots) == 24
    assert apart.min() > 2 * float(dots[0].get("r")) - 1
    assert [one.text for one in root.iter(f"{SVG}text") if one.get("class") == "count"] == ["8", "8", "8"]


@pytest.mark.skipif(shutil.which("ogrinfo") is None, reason="ogrinfo is not installed")
def test_gdal_opens_the_geojson_and_it_sums_to_the_json(client, tmp_path):
    found = client.post("/v1/detect/survey", files=place_photographs()).json()
    (tmp_path / "survey.geojson").write_text(json.dumps(found["geojson"]))
    query = "SELECT kind, COUNT(*) AS number, SUM(damages) AS damages FROM survey GROUP BY kind ORDER BY kind"
    command = ["ogrinfo", "-q", "-dialect", "SQLite", "-sql", query, tmp_path / "survey.geojson"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [dict(re.findall(r"(\w+) \(\w+\) = (.*)", part)) for part in said.split("OGRFeature")[1:]]
    assert [row["kind"] for row in rows] == ["damage", "segment"]
    assert int(rows[0]["number"]) == len(found["damages"]) + len(found["not_placed"])
    assert int(rows[1]["damages"]) == len(found["damages"])
