"""Surveys: places from EXIF and GPX, damage merged and counted per kilometre, maps, GeoJSON, and `fovea survey`."""

import csv
import datetime as dt
import io
import json
import math
import os
import time
import tracemalloc
from typing import Any

import httpx2
import numpy as np
import pytest
from defusedxml import ElementTree
from PIL import ExifTags, Image, TiffImagePlugin

from fovea.errors import Malformed, NotReady, TooLarge
from fovea_planning.models.planner import FoveaPlanner
from fovea_survey.cli import _find_files
from fovea_survey.counting import build_geojson, cut_segments, measure_road, merge_damage
from fovea_survey.geodesy import RADIUS_M, distances, to_metres
from fovea_survey.gpx import parse_gpx
from fovea_survey.places import _read_time, find_place, heic_to_png, read_time
from fovea_survey.placing import drive_in_order, place_pictures
from fovea_survey.schemas import Observation, SeenObject
from services.detection.models.yolo9tr import Yolo9trBoxDetector as Detector
from shared.vision.limits import DecodeBounds
from tests.harness.models import client_of, ok

PAVEMENT = Detector.sample
DEGREE_M = RADIUS_M * math.pi / 180


def photograph(latitude: float, longitude: float, second: int = 0, form: str = "JPEG") -> bytes:
    image = Image.open(PAVEMENT).convert("RGB")
    exif = Image.Exif()
    gps: dict[int, Any] = exif.get_ifd(ExifTags.IFD.GPSInfo)
    tags = ExifTags.GPS

    def parts(degrees: float) -> tuple[Any, ...]:
        minutes, seconds = divmod(round(abs(degrees) * 3600, 5), 60)
        values = (*divmod(minutes, 60), round(seconds, 5))
        return tuple(TiffImagePlugin.IFDRational(round(value * 100_000), 100_000) for value in values)

    gps[tags.GPSLatitudeRef], gps[tags.GPSLatitude] = "NS"[latitude < 0], parts(latitude)
    gps[tags.GPSLongitudeRef], gps[tags.GPSLongitude] = "EW"[longitude < 0], parts(longitude)
    gps[tags.GPSDateStamp], gps[tags.GPSTimeStamp] = "2026:05:04", (10.0, 0.0, float(second))
    exif[ExifTags.Base.DateTime] = "2026:05:04 12:00:00"
    out = io.BytesIO()
    if form == "TIFF":  # its writer takes the directory as a tag's value
        exif[ExifTags.IFD.GPSInfo] = dict(gps)
    if form == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(out, exif=exif.tobytes())
    else:
        image.save(out, form, exif=exif)
    return out.getvalue()


BERLIN = (52.5163, 13.3777)


@pytest.mark.parametrize(("form", "latitude", "longitude"), [
    ("JPEG", -33.8568, 151.2153), ("JPEG", 40.6892, -74.0445),
    *((f, *BERLIN) for f in ("PNG", "WEBP", "TIFF", "HEIF")),
])  # fmt: skip
def test_a_photograph_states_its_place_and_time(form, latitude, longitude):
    found = find_place(photograph(latitude, longitude, 7, form))
    assert (found.latitude, found.longitude) == (pytest.approx(latitude, abs=1e-6), pytest.approx(longitude, abs=1e-6))
    assert found.time == dt.datetime(2026, 5, 4, 10, 0, 7, tzinfo=dt.UTC)


def test_no_place_an_impossible_one_and_no_picture_are_none():
    (exif := Image.Exif())[ExifTags.Base.DateTime] = "2026:05:04 12:00:00"
    Image.new("RGB", (8, 8)).save(out := io.BytesIO(), "JPEG", exif=exif)
    for data in (PAVEMENT.read_bytes(), b"not a picture", photograph(0, 0), out.getvalue()):
        assert isinstance(find_place(data), str)
    assert read_time(out.getvalue()) == dt.datetime(2026, 5, 4, 12)  # noqa: DTZ001  # it states no zone


def test_a_camera_states_parts_of_a_second_and_times_that_there_are_not_are_none():
    exif, tags = Image.Exif(), ExifTags.Base
    gps, own = (exif.get_ifd(part) for part in (ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif))
    own.update({tags.DateTimeOriginal: "2026:05:04 12:00:05", tags.OffsetTimeOriginal: "+02:00"})
    for digits, part in ((None, 0), ("5", 500_000), ("07", 70_000), ("1234567", 123_456), ("x", 0)):
        own.update({tags.SubsecTimeOriginal: digits} if digits else {})
        assert _read_time({}, exif) == dt.datetime(2026, 5, 4, 10, 0, 5, part, dt.UTC)
    own.update({tags.DateTimeOriginal: "9999:12:31 23:00:00", tags.OffsetTimeOriginal: "-05:00"})
    for hours in (1e300, 2e7):
        gps.update({ExifTags.GPS.GPSDateStamp: "9999:12:31", ExifTags.GPS.GPSTimeStamp: (hours, 0.0, 0.0)})
        assert _read_time(gps, exif) is None


def test_heic_becomes_a_picture_that_every_reader_takes():
    data = photograph(1, 1, form="HEIF")
    png = Image.open(io.BytesIO(heic_to_png(data, DecodeBounds())))
    original = Image.open(PAVEMENT).convert("RGB")
    assert png.size == original.size
    assert np.abs(np.asarray(png, int) - np.asarray(original, int)).mean() < 8
    assert heic_to_png(b"\xff\xd8\xff", DecodeBounds()) == b"\xff\xd8\xff"
    with pytest.raises(TooLarge):
        heic_to_png(data, DecodeBounds(pixels=10))


def test_distances_are_those_of_the_sphere_and_the_plane_keeps_them():
    assert distances([(0, 0), (0, 1), (1, 1)]) == pytest.approx([DEGREE_M, DEGREE_M])
    assert distances([(60, 10), (60, 11)])[0] == pytest.approx(DEGREE_M / 2, rel=1e-4)
    assert distances([(0, 179.9), (0, -179.9)])[0] == pytest.approx(0.2 * DEGREE_M)
    points = [(52.5 + 0.001 * n, 13.4 + 0.0013 * n * n) for n in range(6)]
    assert np.linalg.norm(np.diff(to_metres(points), axis=0), axis=1) == pytest.approx(distances(points), rel=1e-3)
    assert to_metres([(0, 179.999), (0, -179.999)])[1, 0] == pytest.approx(0.002 * DEGREE_M, rel=1e-6)


GPX = """<?xml version="1.0"?><gpx xmlns="http://www.topografix.com/GPX/1/1"><trk><trkseg>
<trkpt lat="10.0" lon="20.0"><time>2026-05-04T10:00:00Z</time></trkpt>
<trkpt lat="10.001" lon="20.0"><time>2026-05-04T10:00:10Z</time></trkpt>
<trkpt lat="10.5" lon="20.0"><time>2026-05-04T11:00:00+00:00</time></trkpt>
<trkpt lat="99" lon="20.0"><time>2026-05-04T10:00:05Z</time></trkpt><trkpt lat="1" lon="1"/>
</trkseg></trk></gpx>"""


def test_a_track_is_read_and_interpolated_but_not_over_gaps():
    track = parse_gpx(GPX.encode())
    assert len(track.points) == 3
    assert track.locate(track.start + dt.timedelta(seconds=5)).latitude == pytest.approx(10.0005)
    assert track.locate(track.start + dt.timedelta(minutes=30)) is None
    assert track.locate(track.start - dt.timedelta(seconds=1)) is None
    outside = GPX.replace("2026-05-04T11:00:00+00:00", "9999-12-31T23:00:00-05:00")  # in UTC the year 10000
    assert len(parse_gpx(outside.encode()).points) == 2
    for text in ("no xml", "<gpx/>", '<!DOCTYPE x [<!ENTITY a "aaaa">]><gpx>&a;</gpx>'):
        with pytest.raises(Malformed):
            parse_gpx(text.encode())


def seen(name: str, north_m: float, *labels: str, second: int = 0) -> Observation:
    found = [SeenObject(label=label, score=0.5 + 0.01 * second, box=(0, 0, 1, 1)) for label in labels]
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=second)
    return Observation(name=name, latitude=50 + north_m / DEGREE_M, longitude=8, time=moment, detections=found)


def test_damage_seen_twice_counts_once_and_two_of_one_picture_count_twice():
    drive = [
        seen("a", 0, "D40", "D40"), seen("b", 2, "D40", second=1), seen("c", 2, "D00", second=2),
        seen("d", 50, "D40"),
    ]  # fmt: skip
    assert [one.label for one in merge_damage(drive, 3)] == ["D40", "D40", "D40", "D00"]
    assert len(merge_damage(drive, 0)) == 5
    tracemalloc.start()  # a telephone without reception puts thousands at one place: their pairs are not held
    assert len(merge_damage([seen(f"{n}", 0, "D40") for n in range(2000)], 3)) == 1
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()
    wide = ((1, 0), (1, 3.3), (60, 0), (60, 5.4))  # east in metres of the equator: no one plane holds both latitudes
    wide = [seen("", 0, "D40").model_copy(update={"latitude": y, "longitude": x / DEGREE_M}) for y, x in wide]
    assert [one.latitude for one in merge_damage(wide, 3)] == [1, 1, 60]
    best = merge_damage(drive, 3)[0]
    assert (best.pictures[0], len(best.pictures)) == ("b", 2)


def test_kilometres_and_segments_follow_the_drive_without_its_gaps():
    drive = drive_in_order(
        [seen(str(n), 50.5 * n, *(["D40"] if n % 2 else []), second=n) for n in range(11)]
        + [seen("far", 9000, "D00", second=11), seen("far2", 9050, second=12)]
        + [Observation(name="nowhere")]
    )
    assert [one.name for one in drive][-2:] == ["far", "far2"]
    steps = measure_road(drive, 500)
    assert sum(step or 0 for step in steps) == pytest.approx(555, rel=1e-3)
    assert steps[11] is None
    damages = merge_damage(drive, 0)
    segments = cut_segments(drive, steps, damages, 100)
    assert sum(one.damages for one in segments) == len(damages) == 6
    assert sum(one.end_m - one.start_m for one in segments) == pytest.approx(555, rel=1e-3)
    assert segments[0].per_km == pytest.approx(1000 / 101, rel=0.01)
    features = build_geojson(damages, segments, None)["features"]
    southernmost = min(one["geometry"]["coordinates"][1] for one in features[: len(damages)])
    assert southernmost == pytest.approx(50 + 50.5 / DEGREE_M, abs=1e-6)
    assert {one["geometry"]["coordinates"][0] for one in features[: len(damages)]} == {8.0}


def test_a_drive_without_times_is_in_the_order_of_its_numbers_and_a_long_one_is_placed_and_cut_in_seconds():
    names = [f"frame_{n}.jpg" for n in (1, 2, 9, 10, 11, 100)]
    timeless = [Observation(name=name, latitude=50, longitude=8) for name in (*sorted(names), "a.jpg", "²")]
    assert [one.name for one in drive_in_order(timeless)] == ["a.jpg", *names, "²"]
    drive = [seen(str(n), 5 * n, second=n) for n in range(10_000)]
    began = time.process_time()
    driven = place_pictures(drive, 10_000).driven
    assert len(cut_segments(driven, measure_road(driven, 500), [], 20)) == 2500
    assert time.process_time() - began < 3  # by pairs of pictures it would take seven


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    servables = {"yolo9tr": Detector, "planner": FoveaPlanner}
    with client_of(tmp_path_factory.mktemp("fovea"), "detection", servables) as made:
        yield made


def drive_of(count: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [
        ("images", (f"{n}.jpg", photograph(50 + 40 * n / DEGREE_M, 8 + (n % 2) * 30 / DEGREE_M, n)))
        for n in range(count)
    ]


def test_photographs_become_a_map_with_damage_per_kilometre_and_a_route(client):
    files = [*drive_of(4), ("images", ("plain.jpg", PAVEMENT.read_bytes())), ("images", ("bad.jpg", b"no picture"))]
    found = ok(client.post("/v1/detect/survey", files=files, params={"merge_m": 0, "confidence": 0.3}))
    alone = client.post("/v1/detect", files={"image": PAVEMENT.read_bytes()}, data={"confidence": "0.3"}).json()
    assert len(found["damages"]) == 4 * len(alone["detections"]) > 0
    assert found["without_place"] == ["plain.jpg", "bad.jpg"]
    assert [text.split(":")[0] for text in found["failed"]] == ["bad.jpg"]
    assert found["length_km"] == pytest.approx(3 * math.hypot(40, 30 * math.cos(math.radians(50))) / 1000, rel=1e-3)
    assert found["per_km"] == pytest.approx(len(found["damages"]) / found["length_km"], rel=1e-3)
    assert sorted(found["route"]["order"]) == list(range(len(found["damages"])))
    points = to_metres([(one["latitude"], one["longitude"]) for one in found["damages"]])
    tour = points[[*found["route"]["order"], found["route"]["order"][0]]]
    assert found["route"]["length_m"] == pytest.approx(np.linalg.norm(np.diff(tour, axis=0), axis=1).sum(), abs=0.1)
    kinds = {feature["properties"]["kind"] for feature in found["geojson"]["features"]}
    assert kinds == {"damage", "segment", "route"}


def test_an_option_that_no_picture_can_be_searched_with_is_refused_and_a_long_name_is_not(client):
    files = [("images", (f"{'x' * 600}.jpg", photograph(50, 8)))]
    refused = client.post("/v1/detect/survey", files=files, params={"classes": "nope"})
    assert (refused.status_code, refused.json().get("field")) == (422, "classes"), refused.text
    found = ok(client.post("/v1/detect/survey", files=files))
    assert found["damages"][0]["pictures"] == [found["observations"][0]["name"]]
    assert found["observations"][0]["name"].endswith("x.jpg")


def test_observations_are_counted_again_and_go_out_as_geojson_svg_and_csv(client):
    observations = [json.loads(seen(f"<{n}\x1b a>", 30 * n, "D40", second=n).model_dump_json()) for n in range(5)]

    def counted(media: str, merge_m: int = 1) -> httpx2.Response:
        body = {"observations": observations, "merge_m": merge_m}
        answer = client.post("/v1/detect/survey", json=body, headers={"accept": media})
        assert answer.status_code == 200, answer.text
        return answer

    kinds = [one["properties"]["kind"] for one in counted("application/geo+json").json()["features"]]
    assert kinds.count("damage") == 5
    svg, space = counted("image/svg+xml").text, "{http://www.w3.org/2000/svg}"
    circles = ElementTree.fromstring(svg).iter(f"{space}circle")
    assert len([c for c in circles if c.find(f"{space}title") is not None]) == 5
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert {row["label"] for row in csv.DictReader(io.StringIO(counted("text/csv").text))} == {"D40"}
    (row,) = csv.DictReader(io.StringIO(counted("text/csv", merge_m=200).text))
    assert row["pictures"].split("; ") == [f"<{n}\x1b a>" for n in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize(("stated", "zone", "latitude"), [
    ("", None, None), ("", "+02:00", 10.0005), ("+02:00", None, 10.0005), ("+02:00", "+05:00", 10.0005),
])  # fmt: skip
def test_a_track_places_a_photograph_by_the_zone_of_its_clock(client, stated, zone, latitude):
    exif, tags, out = Image.Exif(), ExifTags.Base, io.BytesIO()
    exif.get_ifd(ExifTags.IFD.Exif).update({tags.DateTimeOriginal: "2026:05:04 12:00:05", tags.OffsetTime: stated})
    Image.open(PAVEMENT).convert("RGB").save(out, "JPEG", exif=exif)
    track = GPX if latitude else GPX.replace("T10:", "T12:").replace("T11:", "T13:")  # as if the clock showed UTC
    files = [("images", ("old.jpg", out.getvalue())), ("gpx", ("a.gpx", track.encode()))]
    found = ok(client.post("/v1/detect/survey", files=files, data={"zone": zone} if zone else {}))
    (one,) = found["observations"]
    assert one["latitude"] == (latitude and pytest.approx(latitude))
    assert one["time"] == ("2026-05-04T10:00:05Z" if latitude else "2026-05-04T12:00:05")
    assert ["its time has no zone" in text for text in found["place_problems"]] == ([] if latitude else [True])


def test_mistakes_are_named(client):
    for more, status, told in (
        ({"json": {}}, 422, "observations"),
        ({"json": {"observations": [{"name": "a", "latitude": 91, "longitude": 0}]}}, 422, "latitude"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "JSON"),
        ({"files": {"gpx": b"x"}}, 400, "GPX"),
        ({"files": {"images": b"x"}, "params": {"nope": 1}}, 422, "nope"),
        ({"files": {"images": b"x"}, "params": {"model": "nope"}}, 404, "nope"),
    ):
        answer = client.post("/v1/detect/survey", **more)
        assert answer.status_code == status, answer.text
        assert told in answer.text


def test_a_folder_of_photographs_becomes_a_map(fovea, tmp_path):
    drive = tmp_path / "drive"
    for number in range(3):
        (drive / str(number)).mkdir(parents=True)
        (drive / str(number) / "p.jpg").write_bytes(photograph(50 + number * 0.0004, 8, number))
    (drive / "plain.jpg").write_bytes(PAVEMENT.read_bytes())
    (drive / "out/pictures").mkdir(parents=True)
    (drive / "out/pictures/0000-p.jpg").write_bytes(PAVEMENT.read_bytes())  # of an earlier survey
    for name in ("a.AVI", "b.dng", "c.dng", "out/survey.json"):
        (drive / name).write_bytes(b"x")
    code, out, err = fovea("survey", drive, "-o", tmp_path / "out")
    assert not code, err
    assert "skipped, as neither photographs nor films that are read: .dng 2, .avi 1, .json 1." in " ".join(err.split())
    assert "0.089 km" in out
    assert "found, not placed" in out
    assert "plain.jpg: The file states no GPS position." in err
    found = json.loads((tmp_path / "out" / "survey.json").read_text())
    assert found["pictures"] == 4
    assert {name for one in found["damages"] for name in one["pictures"]} == {f"{number}/p.jpg" for number in range(3)}
    points = json.loads((tmp_path / "out" / "survey.geojson").read_text())["features"]
    damages = [one["properties"] for one in points if one["properties"]["kind"] == "damage"]
    assert len(damages) == len(found["damages"]) + len(found["not_placed"]) > len(found["damages"]) > 0
    assert all((tmp_path / "out" / one["picture"]).read_bytes()[:3] == b"\xff\xd8\xff" for one in damages)
    assert (tmp_path / "out" / "survey.svg").read_text().startswith("<svg")
    assert (tmp_path / "out" / "survey.csv").read_text().startswith("label,place,latitude")
    (drive / "0" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    (drive / "0" / "gone.jpg").symlink_to("nowhere")
    (drive / "1" / "cut.mp4").write_bytes(b"cut")
    (drive / "a.gpx").write_text(GPX)
    options = ["-o", tmp_path / "gap", "--max-gap", 30, "--far", 0, "--segment", 9, "--gpx", drive / "a.gpx"]
    code, out, err = fovea("survey", drive / "0", drive / "1", drive / "1/p.jpg", *options)
    assert "further apart than 30 m (option `max_gap_m`)" in " ".join(err.split()), out + err
    assert (code, *(name in err for name in ("cut.jpg: ", "gone.jpg: ", "cut.mp4: "))) == (1, True, True, True)
    assert json.loads((tmp_path / "gap" / "survey.json").read_text())["pictures"] == 5


def test_a_survey_that_breaks_off_keeps_what_it_found_and_parts_leave_no_jobs_behind(fovea, url, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise NotReady("The gateway is away.")

    def count_jobs() -> int:
        return len(ok(httpx2.get(f"{url}/v1/jobs"))["jobs"])

    (tmp_path / "p.jpg").write_bytes(photograph(50, 8))
    monkeypatch.setattr("fovea_survey.cli._count", refuse)
    before = count_jobs()
    code, _, err = fovea("survey", tmp_path / "p.jpg", "-o", tmp_path / "out")
    assert code, err
    assert "observations.json" in "".join(err.split())
    assert count_jobs() == before  # a tenant's jobs may hold only so much, and each part has its pictures
    kept = (tmp_path / "out" / "observations.json").read_text()
    assert "null" not in kept  # a request has only so many parts: each field counts
    assert ok(httpx2.post(f"{url}/v1/detect/survey", json=json.loads(kept), timeout=60))["damages"]


def test_files_of_one_name_keep_their_folders_and_two_films_are_refused(fovea, tmp_path):
    for name in ("one/p.jpg", "one/._p.jpg", "two/p.jpg", os.fsdecode(b"two/\xfc.jpg"), "one/a.mp4", "two/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    shared = [(tmp_path / day / "p.jpg").as_posix() for day in ("one", "two")]
    folders = [tmp_path / "one", tmp_path / "two"]
    assert [name for name, _ in _find_files(folders)] == ["a.mp4", shared[0], "b.mp4", shared[1], "?.jpg"]
    for arguments, status, told in (
        (folders, 2, "a.mp4 and b.mp4 can't begin at the same place"),
        ([tmp_path / "one"], 2, "The film a.mp4 has no places of its own."),
        ([tmp_path / "one/p.jpg", "--gpx", "nope.gpx"], 4, "There is no file 'nope.gpx'"),
        ([tmp_path / "one/p.jpg", "nope"], 4, "There is no file or folder 'nope'"),
    ):
        code, _, err = fovea("survey", *arguments, "-o", tmp_path / "out")
        assert (code, told in " ".join(err.split())) == (status, True), err
