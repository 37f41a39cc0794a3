"""Pictures of experiments, and the cells kept between them."""

import base64
import hashlib
import io
import json
import os
import re
from urllib.parse import parse_qs
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from services.interpretability.core import report as reports
from services.interpretability.core.result_store import CellCache
from services.interpretability.rendering import plots
from services.interpretability.rendering.html_page import POLICY, permalink, render_page
from services.interpretability.rendering.render import FORMATS, render, to_npz
from services.interpretability.rendering.svg import BLUE, Drawing, Rect, Text, stack_drawings
from shared.storage import ObjectStore

NASTY = '<script>alert(1)</script>&"\n\x07'


def head_map(values, scale="sequential"):
    return reports.head_map("scores", np.array(values, float), "How to read it.", scale=scale, text="a b")


def whole_report():
    tokens = [reports.TokenSpan(text=NASTY, start=0, end=1), reports.TokenSpan(text="b", start=1, end=2)]
    bars = [reports.Bar(label="x", value=-1), reports.Bar(label="y", value=2, low=1, high=3)]
    return reports.Report(
        title=NASTY,
        warnings=[NASTY],
        scalars={"n": reports.Scalar(value=3), "u": reports.Scalar(value=None, unit="x", note=NASTY)},
        tables=[reports.Table(name="t", columns=["a"], rows=[[NASTY], [0.5], [None]] * 100)],
        grids=[head_map([[0.1, None], [0.3, -2.0]], "diverging")],
        bars=[reports.Bars(name="b", bars=bars, caption="C.")],
        strips=[reports.Strip(name="s", tokens=tokens, values=[1, None], caption="C.")],
        graphs=[
            reports.Graph(
                name="g", nodes=[reports.Node(id="1-0", layer=1, head=0, kind="mover", value=1)],
                edges=[reports.Edge(source="1-0", target=t, value=v) for t, v in (("output", 0.4), ("gone", 1))],
                caption="C.",
            )
        ],
        spec={"lm": "tiny", "text": NASTY, "seed": 0},
        manifest=reports.RunManifest(
            experiment="attention", model="tiny", weights_sha256="0", tokenizer_sha256="0", dtype="float32",
            device="cpu", code="0", seed=0,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("media", FORMATS.values())
def test_every_form_is_made_and_made_the_same_twice(media):
    assert render(whole_report(), media) == render(whole_report(), media) != b""


def test_svg_is_well_formed_and_what_the_pointer_shows_is_the_whole_number():
    root = ET.fromstring(render(whole_report(), "image/svg+xml"))  # noqa: S314  # our own
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert "1 / 0: 0.3" in titles
    assert "0 / 1: undefined" in titles
    assert any(element.tag.endswith("}a") for element in root.iter()), "a head leads to its pattern"
    strange = reports.heat_map("grid", [[1.0]], ("layer", [0]), ("token", [f"{NASTY}\x7f\ufffe"]), "C.")
    alone = ET.fromstring(plots.draw_heat_map(strange).svg())  # noqa: S314  # our own
    assert "␡" in alone.get("aria-label", ""), "the sign of its own"
    (grid,) = whole_report().grids
    table = reports.Table(name="t", columns=["a", "b"], rows=[["x", 0.123456789], [None, 1]])
    scalar = reports.Scalar(value=1234567.0, unit="ms")
    shown = {"grids": [grid.model_copy(update={"values": [[0.123456789, None], [0.3, -2.0]]})], "tables": [table]}
    made = render_page(whole_report().model_copy(update={**shown, "scalars": {"n": scalar}}))
    assert "0 / 0: 0.123456789</title>" in made
    assert '<td title="0.123456789">0.1235</td>' in made
    assert "title='1234567 ms'" in made


def patterns(heads, tokens=40):
    values = np.tril(np.ones((tokens, tokens))) / np.arange(1, tokens + 1)[:, None]
    axes = ("query", range(tokens)), ("key", range(tokens))
    return [reports.heat_map(f"1-{h}", values, *axes, "How to read it.") for h in range(heads)]


def test_patterns_of_many_heads_are_small_maps_and_charts_that_are_left_out_are_told():
    report = whole_report().model_copy(update={"grids": patterns(7), "spec": {"text": "ab", "seed": 0}})
    root = ET.fromstring(plots.draw_panels(report.grids, lambda data: f"/{data.name}").svg())  # noqa: S314  # our own
    assert [a.get("href") for a in root.iter() if a.tag.endswith("}a")] == [f"/1-{h}" for h in range(7)]
    made = render_page(report)
    assert made.count("<figure>") == 1 + 3, "one for all heads; bars, strip and graph"
    assert "%22layers%22%3A%20%5B1%5D%2C%20%22heads%22%3A%20%5B6%5D" in made
    assert render_page(report.model_copy(update={"grids": patterns(2)})).count("<figure>") == 2 + 3, "few are large"
    found = np.array(plots._max_pool(patterns(1, 70)[0].values, 3, 3))
    assert (found.shape, found[0, 0], found[23, 23]) == ((24, 24), 1.0, pytest.approx(1 / 70))
    bars = [whole_report().bars[0].model_copy(update={"name": f"b{number}"}) for number in range(70)]
    report = whole_report().model_copy(update={"bars": bars, "grids": [], "graphs": [], "strips": []})
    made = render_page(report)
    assert (made.count("<figure>"), "6 more charts are in the JSON." in made) == (65, True)
    assert "6 more charts are in the JSON." in render(report, "image/svg+xml").decode()
    assert "more charts" not in render_page(report.model_copy(update={"bars": bars[:64]}))


def test_page_is_honest_about_parts_text_of_strangers_stays_text_and_its_policy_allows_one_style_sheet():
    made = render_page(whole_report())
    (sheet,) = re.findall(r"<style>(.*?)</style>", made, re.DOTALL)
    assert f"style-src 'sha256-{base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()}';" in POLICY
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert "prefers-color-scheme: dark" in sheet
    assert made.index("<style>") < made.index("<main>"), "who takes over `main` takes none of it"
    assert " style=" not in made
    assert "<script" not in made
    assert "alert(1)" in made
    assert "\x07" not in made
    made = render_page(whole_report().model_copy(update={"partial": True}))
    assert "Partial" in made
    assert "undefined" in made
    assert "more rows" in made


def test_permalinks_hold_what_is_given_and_arrays_the_numbers_of_the_json_whatever_their_names():
    with np.load(io.BytesIO(to_npz(whole_report())), allow_pickle=False) as found:
        assert np.array_equal(found["grid.scores"], [[0.1, np.nan], [0.3, -2.0]], equal_nan=True)
        assert (found["bars.b"].tolist(), found["scalar.n"]) == ([-1, 2], 3)
    link = permalink("attention", {"text": "a & b", "heads": [], "lm": None, "layers": [1]})
    spec = {"remove": 0, "teacher_forced": False}
    assert json.loads(parse_qs(permalink("sinks", spec))["spec"][0]) == spec
    assert link.endswith("?model=attention&spec=%7B%22text%22%3A%20%22a%20%26%20b%22%2C%20%22layers%22%3A%20%5B1%5D%7D")
    (bars,) = whole_report().bars
    pairs = zip(("c++", "c#"), bars.bars, strict=True)
    named = [bars.model_copy(update={"name": name, "bars": [bar]}) for name, bar in pairs]
    with np.load(io.BytesIO(to_npz(whole_report().model_copy(update={"bars": named}))), allow_pickle=False) as found:
        assert [found[key].tolist() for key in ("bars.c_", "bars.c_2")] == [[-1], [2]]


def test_empty_extreme_and_long_data_are_drawn_within_their_pictures():
    for grid in (head_map([[None]]), head_map([[0.0]]), head_map([[1e300, -1e300]], "diverging")):
        assert plots.draw_heat_map(grid).svg()
    assert plots.draw_bars(reports.Bars(name="b", bars=[], caption="C.")).svg()
    assert plots.draw_bars(reports.Bars(name="b", bars=[reports.Bar(label="x", value=None)], caption="C.")).svg()
    names = [f"backbone.layer{number}.0.conv{end}" for number in range(4) for end in (1, 2)]
    bars = [reports.Bar(label=name, value=1.0) for name in names]
    grid = reports.heat_map("g", np.eye(8), ("a", names), ("b", names), "C.")
    for drawing, count in (
        (plots.draw_bars(reports.Bars(name="b", bars=bars, caption="C.")), 8),
        (plots.draw_heat_map(grid), 16),
    ):
        labels = [shape.text for shape in drawing.shapes if isinstance(shape, Text) and "…" in shape.text]
        assert (len(labels), len(set(labels))) == (count, count)
    assert plots.draw_strip(reports.Strip(name="s", tokens=[], values=[], caption="C.")).svg()
    assert plots.draw_graph(reports.Graph(name="g", nodes=[], edges=[], caption="C.")).svg()
    tall = Drawing(100, 60_000, "x", [Rect(0, 0, 10, 10, BLUE), Text(5, 5, "x", turned=True)])
    assert max(Image.open(io.BytesIO(stack_drawings([tall]).png())).size) <= 8000
    axes = ("query", range(4)), ("key", range(400))
    drawing = plots.draw_heat_map(reports.heat_map("wide", np.eye(4, 400), *axes, "How to read it."))
    cells = [shape for shape in drawing.shapes if isinstance(shape, Rect)]
    assert max(cell.x + cell.w for cell in cells) < drawing.width
    assert plots.draw_heat_map(patterns(1)[0]).width == plots.WIDTH
    (large,) = patterns(1, 300)
    cells = [shape for shape in plots.draw_heat_map(large).shapes if isinstance(shape, Rect) and " / " in shape.title]
    assert (len(cells), cells[-1].title) == (150**2, "298 / 298: 0.00334448161")


@pytest.fixture
def cache(tmp_path):
    return CellCache(ObjectStore.open(tmp_path.as_uri()))


@pytest.mark.parametrize("value", [[0.1, None], [1 / 3, 2**-40, 1e300], {"late": 1, "early": 2}])
def test_cell_is_computed_once_and_read_to_the_bit_by_the_next_process(tmp_path, cache, value):
    first = cache.get_or_compute({"a": 1}, lambda: value)
    assert (first.value, list(first.value)) == (value, list(value))
    again = CellCache(ObjectStore.open(tmp_path.as_uri())).get_or_compute({"a": 1}, lambda: 1 // 0)
    assert (again, list(again.value)) == (first, list(value)), "keys keep their order"
    assert cache.get_or_compute({"a": 2}, lambda: 2).value == 2, "other content is another cell"


def test_cells_cut_short_or_failed_are_computed_again_old_ones_forgotten_and_not_a_number_refused(tmp_path, cache):
    cache.get_or_compute({"a": 1}, lambda: 1)
    (file,) = tmp_path.glob("??/*.json")
    file.write_text('{"value": 1, "sec')
    assert cache.get_or_compute({"a": 1}, lambda: 2).value == 2
    for i in range(3):
        cache.get_or_compute({"a": i}, lambda: 1)
    old, *_ = tmp_path.glob("??/*.json")
    os.utime(old, (0, 0))
    assert (cache.remove_old(), len(list(tmp_path.glob("??/*.json")))) == (1, 2)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute({"c": 1}, lambda: 1 // 0)
    assert cache.get_or_compute({"c": 1}, lambda: 3).value == 3
    with pytest.raises(ValueError, match="JSON"):
        cache.get_or_compute({"b": 1}, lambda: float("nan"))
