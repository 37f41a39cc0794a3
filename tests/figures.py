"""Figures and tables that pages include by key, so that each number has one home: a manifest, a benchmark or a claim.

A page writes `<!--=KEY-->text<!--/-->`; `python -m tests.drift --write` replaces the text by the current figure:

* `<!--=yolo9tr.map50-->`: a metric of the manifest of weights, with two decimals; `<!--=yolo9tr.map50:interval-->` is
  its 95 % interval. Another format follows a colon: `:.3f`, `:.0%`.
* `<!--=bench/SUITE/targets/NAME-->`, `<!--=bench/SUITE/rows/NAME/median-->` (or `ratio`): a result of `make bench`.
* `<!--=claims/NAME/measured/speedup-->`: from a sparsity claim.
* `<!--=table models-->`, `<!--=table claims-->`: a whole table.
"""

import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from shared.registry import Card, Metric, servables
from shared.registry.discovery import SERVICES, claims, shipped_weights
from shared.registry.weights import Manifest, read_manifest

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "loadtests/bench/results"
PLACE = re.compile(r"<!--=(?P<key>[^\n]+?)-->(?P<text>.*?)<!--/-->", re.DOTALL)
GENERATED = (
    "20-scale", "benchmarks", "gpu-cost", "gpu-kernels", "gpu-methods", "leaderboard*", "mutation", "settings",
    "tensorrt-operators",
)  # fmt: skip

MODELS: Mapping[str, tuple[str, str]] = {
    "pranet": ("mean_dice", "mean Dice"), "hieraedgenet-cells": ("map50", "mAP@0.5"), "yolo9tr": ("map50", "mAP@0.5"),
    "patnet": ("top_1", "top-1"), "fasternet": ("top_1", "top-1"), "rrformer-restorer": ("psnr_gain", "gain, dB"),
    "pranet-v2": ("mean_dice", "mean Dice"), "hieraedgenet-synthetic-pollen": ("map_50", "mAP@0.5"),
    "bmn": ("average_map", "average mAP"), "bmn-csa": ("average_map", "average mAP"),
    "oat": ("sequence_score", "sequence score"), "fovea-pointer-hull": ("exact_n10", "exact hulls of 10 points"),
    "fovea-landmark-recall": ("recall_1024_k2", "recall at 1,024 tokens"),
    "fovea-titans-mac": ("recall_512", "recall at 512 tokens"),
    "fovea-routing-bytes": ("bits_teacher_forced", "bits per byte"),
}  # fmt: skip
"""Weights that the table of models shows: the metric, and what it is called there."""

SERVED_AS = {"rrformer-restorer": "rrformer", "fovea-pointer-hull": "fovea-planner"}
"""Weights → the model that serves them, where its name is another."""


class UnknownFigure(ValueError):
    """A page asks for a figure that no source has."""


def pages() -> list[pathlib.Path]:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")]
    return sorted({*texts} - {file for name in GENERATED for file in ROOT.glob(f"docs/{name}.md")})


def included_figures() -> Iterator[tuple[pathlib.Path, str]]:
    """Each page that includes figures, with the current ones in their places."""
    for page in pages():
        if PLACE.search(text := page.read_text("utf8")):
            yield page, fill_in(text, page.name)


def fill_in(text: str, page: str) -> str:
    """Put the current figure into each place of a page."""

    def replace(place: re.Match[str]) -> str:
        try:
            figure = look_up(place["key"])
        except KeyError as error:
            raise UnknownFigure(f"{page} asks for the figure {place['key']!r}: {error.args[0]}") from error
        return f"<!--={place['key']}-->{figure}<!--/-->"

    return PLACE.sub(replace, text)


def look_up(key: str) -> str:
    """Return the figure of a key as text; a KeyError says what is available."""
    if key in TABLES:
        return f"\n{TABLES[key]()}\n"
    name, form = re.fullmatch(r"(.*?)(?::(interval|[+,.\d]*[f%]))?", key).groups()  # type: ignore[union-attr]
    if name.startswith("bench/"):
        return format(_benchmark(*name.split("/")[1:]), form or ".2f")
    if name.startswith("claims/"):
        found: Any = {name: claim.model_dump() for name, claim in claims().items()}
        for step in name.split("/")[1:]:
            found = _pick(found, step)
        return format(float(found), form or ".2f")
    weights, _, metric = name.partition(".")
    manifest = _pick(manifests(), weights)
    if form == "interval":
        low, high = _pick(manifest.intervals, metric)
        return f"{low:.2f} to {high:.2f}"
    return format(_pick(manifest.metrics, metric), form or ".2f")


def _benchmark(suite: str, part: str, name: str, column: str = "median") -> float:
    if not (file := RESULTS / f"{suite}.json").exists():
        known = ", ".join(sorted(one.stem for one in RESULTS.glob("*.json")))
        raise KeyError(f"there is no result of the suite {suite!r}. Available: {known}.")
    table = json.loads(file.read_text("utf8"))
    if part == "targets":
        return float(_pick(table["targets"], name)[0])
    rows = {row["name"]: row for row in table["rows"]} | {f"{row['name']}, {row['unit']}": row for row in table["rows"]}
    return float(_pick(_pick(rows, name), column))


def _pick(among: Mapping[str, Any], name: str) -> Any:
    if name not in among:
        raise KeyError(f"{name!r} is not there. Available: {', '.join(map(str, among))}.")
    return among[name]


@cache
def manifests() -> Mapping[str, Manifest]:
    return {name: read_manifest(file) for name, file in shipped_weights().items()}


def complete_card(card: Card) -> Card:
    """Return a Card with what its manifest measured, and no paper's figure next to one of synthetic data."""
    manifest = manifests().get(card.name)
    found = dict(manifest.metrics) if manifest is not None and not card.weights else {}
    metrics = [one.model_copy(update={"ours": found.get(one.name, one.ours)}) for one in card.metrics]
    facts = {"metrics": tuple(map(_without_unlike_paper, metrics))}
    return card.model_copy(update={**facts, "weights": manifest.sha256} if found and manifest else facts)


def _without_unlike_paper(metric: Metric) -> Metric:
    """Move the paper's figure from its column into the note, where ours is of synthetic data."""
    if metric.paper is None or metric.ours is None or "synthetic" not in metric.data.lower():
        return metric
    note = " ".join(filter(None, (f"The paper has {metric.paper:g} on its own data.", metric.note)))
    return metric.model_copy(update={"paper": None, "note": note})


def render_models() -> str:
    """The models that come with weights, what they were measured on, and under which terms they may be used."""
    cards = {name: kind.card for service in SERVICES for name, kind in servables(service).items()}
    lines = ["| model | task | trained on | terms of the data | measured, 95 % interval |", "|---|---|---|---|---|"]
    for name, (metric, label) in MODELS.items():
        manifest = _pick(manifests(), name)
        model = SERVED_AS.get(name, name)
        low, high = manifest.intervals[metric]
        figure = f"{label} {manifest.metrics[metric]:.2f} ({low:.2f} to {high:.2f})"
        cells = (f"[{model}](docs/models/{model}.md)", cards[model].task, *_describe_data(manifest.data), figure)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _describe_data(data: Mapping[str, Any]) -> tuple[str, str]:
    """Training data of weights, and its terms in a phrase."""
    terms = re.split(r", no | \(", str(data.get("terms", "")))[0]
    if data.get("origin") == "real":
        return str(data["title"]), terms
    if data.get("origin"):
        return f"photographs with **{data['origin']}**", terms
    if "text" in data:
        return "sources of Python's standard library", "PSF-2.0"
    return "**synthetic** data", ""


def render_claims() -> str:
    """The measured claims of attention methods."""
    facts = json.loads((ROOT / "services/llm_longctx/methods/core/claims.json").read_text("utf8"))
    lines = ["| method | knobs | needle | attention that is read | speed of dense |", "|---|---|---|---|---|"]
    for name, claim in facts.items():
        knobs = ", ".join(f"{knob} {value}" for knob, value in claim["knobs"].items())
        needle, read = f"{claim['retrieval']['score']:.2f}", f"{claim['theoretical_flops_ratio']:.2f}"
        lines.append(f"| {name} | {knobs} | {needle} | {read} | {claim['measured']['speedup']:.2f} |")
    return "\n".join(lines)


TABLES: Mapping[str, Callable[[], str]] = {
    "table models": render_models, "table claims": render_claims,
}  # fmt: skip
"""Key of a place → what renders its table."""

REAL = {
    "pranet": "dice_at_half", "hieraedgenet": "map50", "yolo9tr": "map50", "patnet": "top_1", "fasternet": "top_1",
}  # fmt: skip
"""How a page calls a model with weights from real pictures, in lower case, and the metric that pages like to copy."""


def copied_by_hand() -> Iterator[str]:
    """Each headline figure of these models that stands in a page without its key."""
    for page in pages():
        for number, line in enumerate(PLACE.sub("", page.read_text("utf8")).splitlines(), 1):
            for name, metric in REAL.items():
                weights = "hieraedgenet-cells" if name == "hieraedgenet" else name
                figure = f"{manifests()[weights].metrics[metric]:.3f}"
                if name in line.lower() and re.search(rf"(?<![\d.])0?{re.escape(figure[1:])}(?!\d)", line):
                    key = f"<!--={weights}.{metric}:.3f-->"
                    yield f"{page.relative_to(ROOT)}:{number} copies {figure} by hand; write {key}{figure}<!--/-->"
