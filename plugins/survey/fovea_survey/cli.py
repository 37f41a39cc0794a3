"""`fovea survey …`: photographs or a film of a drive become damage on a map, per kilometre, with a route."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea.call import Call, read_json
from fovea.cli.common_options import AsJson, Connection, Key, Model, Url
from fovea.cli.job_progress import run_as_job
from fovea.cli.output import Screen
from fovea.client import Client
from fovea.transport import LOCAL
from shared.errors import NotFound

PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".heic", ".heif"})
FILMS = frozenset({".mp4", ".webm", ".mkv", ".mov"})
MAX_REQUEST_BYTES = 40 * 2**20
FORMS = {"geojson": "application/geo+json", "svg": "image/svg+xml", "csv": "text/csv"}
PATH = "/v1/detect/survey"


def survey(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE…", help="Photographs, folders of them, or a film.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("out"),
    gpx: Annotated[Path | None, typer.Option(help="Track of a film or of the photographs.", show_default=False)] = None,
    model: Model = None,
    confidence: Annotated[
        float | None, typer.Option(help="A detection scores more than this; left out, as the weights count best.")
    ] = None,
    merge_m: Annotated[float, typer.Option("--merge", help="Damage so near in other pictures counts once, m.")] = 3.0,
    every: Annotated[int, typer.Option(min=1, help="Of a film, every so many frames.")] = 10,
    fps: Annotated[float | None, typer.Option(help="Frames per second of a film; left out, as it says.")] = None,
    start: Annotated[
        datetime | None, typer.Option(help="When a film starts, UTC; left out, with the track's first point.")
    ] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Survey a road: writes survey.json, survey.geojson, survey.svg and survey.csv."""
    options: dict[str, Any] = {"model": model, "confidence": confidence, "merge_m": merge_m, "every": every, "fps": fps}
    options["start"] = start.isoformat() if start else None
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    screen = Screen(as_json=as_json)
    files = list(_find_files(sources))
    if not files:
        raise NotFound("There is no photograph and no film among the sources.")
    with Connection(url, key).open() as client:
        observations: list[Any] = []
        for part in _split(files):
            observations += _observe(client, screen, part, gpx, {**given, "route": False})
        body = {**given, "observations": observations}
        found = client.send(Call("POST", PATH, read_json, json=body))
        output.mkdir(parents=True, exist_ok=True)
        (output / "survey.json").write_text(json.dumps({k: v for k, v in found.items() if k != "geojson"}, indent=1))
        for suffix, media in FORMS.items():
            call = Call("POST", PATH, lambda answer: answer.content, json=body, headers={"accept": media})
            (output / f"survey.{suffix}").write_bytes(client.send(call))
    _print(screen, found, output)


def _find_files(sources: Sequence[Path]) -> Iterator[Path]:
    for source in sources:
        inside = sorted(source.rglob("*")) if source.is_dir() else [source]
        yield from (path for path in inside if path.suffix.lower() in PHOTOGRAPHS | FILMS and path.is_file())


def _split(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Parts below the gateway's limit; a film goes alone."""
    part: list[Path] = []
    size = 0
    for file in files:
        length = file.stat().st_size
        is_film = file.suffix.lower() in FILMS
        if part and (is_film or size + length > MAX_REQUEST_BYTES):
            yield part
            part, size = [], 0
        if is_film:
            yield [file]
            continue
        part.append(file)
        size += length
    if part:
        yield part


def _observe(
    client: Client, screen: Screen, files: Sequence[Path], gpx: Path | None, options: dict[str, Any]
) -> list[Any]:
    """Search one part as a job; its field names say which is the film."""
    parts = {}
    for place, file in enumerate(files):
        field = "video" if file.suffix.lower() in FILMS else f"image{place}"
        parts[field] = (file.name, file.read_bytes(), "application/octet-stream")
    if gpx is not None:
        parts["gpx"] = (gpx.name, gpx.read_bytes(), "application/gpx+xml")
    form = {name: str(value) for name, value in options.items()}
    found = run_as_job(client, screen, Call("POST", PATH, read_json, files=parts, form=form))
    observations: list[Any] = found["observations"]
    return observations


def _print(screen: Screen, found: dict[str, Any], output: Path) -> None:
    facts = {name: value for name, value in found.items() if name not in {"geojson", "observations", "segments"}}
    if screen.as_json:
        screen.line(facts)
        return
    route = found["route"]
    screen.facts(
        {
            "pictures": f"{found['pictures']} ({len(found['without_place'])} without a place)",
            "road": f"{found['length_km']:.3f} km",
            "damage": ", ".join(f"{label} {count}" for label, count in found["counts"].items()) or "none found",
            "per km": "–" if found["per_km"] is None else f"{found['per_km']:.1f}",
            "route": f"{route['length_m']:.0f} m" if route else "–",
        }
    )
    screen.note(f"wrote {output}/survey.json, .geojson, .svg, .csv")
