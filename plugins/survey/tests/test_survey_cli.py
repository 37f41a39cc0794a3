"""`fovea survey`: photographs through the gateway, to GeoJSON, a map and figures."""

import json

from plugins.survey.tests.test_survey import PAVEMENT, photograph


def test_a_folder_of_photographs_becomes_a_map(fovea, tmp_path):
    drive = tmp_path / "drive"
    for number in range(3):
        (drive / str(number)).mkdir(parents=True)
        (drive / str(number) / "p.jpg").write_bytes(photograph(50 + number * 0.0004, 8, number))
    (drive / "plain.jpg").write_bytes(PAVEMENT.read_bytes())
    code, out, err = fovea("survey", drive, "-o", tmp_path / "out")
    assert not code, err
    assert "0.089 km" in out
    assert "found, not placed" in out
    assert "plain.jpg: The file states no GPS position." in err
    found = json.loads((tmp_path / "out" / "survey.json").read_text())
    assert {name for one in found["damages"] for name in one["pictures"]} == {f"{number}/p.jpg" for number in range(3)}
    points = json.loads((tmp_path / "out" / "survey.geojson").read_text())["features"]
    damages = [one["properties"] for one in points if one["properties"]["kind"] == "damage"]
    assert len(damages) == len(found["damages"]) + len(found["not_placed"]) > len(found["damages"]) > 0
    assert all((tmp_path / "out" / one["picture"]).read_bytes()[:3] == b"\xff\xd8\xff" for one in damages)
    assert (tmp_path / "out" / "survey.svg").read_text().startswith("<svg")
    assert (tmp_path / "out" / "survey.csv").read_text().startswith("label,place,latitude")
