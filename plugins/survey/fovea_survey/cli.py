"""`fovea survey …`: photographs or a film of a drive become damage on a map, per kilometre, with a route."""

import base64
import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea import endpoints
from fovea.call import Call, read_json
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.exit_codes import OUTCOME
from fovea.cli.input_files import split_by_size
from fovea.cli.job_progress import follow_job, job_result
from fovea.cli.output import Screen
from fovea.client import Client
from fovea.errors import BadInput, FoveaError, InvalidOption, NotFound
from fovea.picture import read_path

PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".heic", ".heif"})
FILMS = frozenset({".mp4", ".webm", ".mkv", ".mov"})
MAX_REQUEST_BYTES = 40 * 2**20
FORMS = ("survey.json", "survey.geojson", "survey.svg", "survey.csv")
PATH = "/v1/detect/survey"


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How damage is searched and counted."""

    model: Model = None
    confidence: Annotated[
        float | None, typer.Option(help="A detection scores more than this; left out, as the weights count best.")
    ] = None
    merge_m: Annotated[
        float, typer.Option("--merge", help="Merge detections of different pictures within N metres.", metavar="N")
    ] = 3.0
    far_m: Annotated[
        float | None, typer.Option("--far", help="Leave out pictures N metres from nearly all others.", metavar="N")
    ] = None
    max_gap_m: Annotated[
        float | None, typer.Option("--max-gap", help="Join no pictures N metres apart by a road.", metavar="N")
    ] = None
    segment_m: Annotated[
        float | None, typer.Option("--segment", help="Count damage by segments of N metres.", metavar="N")
    ] = None
    every: Annotated[int, typer.Option(min=1, help="Search every N-th frame of a film.", metavar="N")] = 10
    fps: Annotated[float | None, typer.Option(help="Frames per second of a film; left out, its own.")] = None
    start: Annotated[
        datetime | None, typer.Option(help="When a film starts, UTC; left out, with the track's first point.")
    ] = None
    zone: Annotated[
        str | None, typer.Option(help="Offset of cameras' clocks that state none, such as +02:00.", metavar="OFFSET")
    ] = None

    def build(self) -> dict[str, Any]:
        """Return the options that were given, as fields of a request."""
        start = self.start.isoformat() if self.start else None
        found = {**asdict(self), "start": start}
        return {name: value for name, value in found.items() if value is not None}


def survey(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE…", help="Photographs, folders of them, or a film.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("out"),
    gpx: Annotated[Path | None, typer.Option(help="Track of a film or of the photographs.")] = None,
    *,
    search: SearchOptions,
    gateway: GatewayOptions,
) -> None:
    """Survey a road: writes survey.json, survey.geojson, survey.svg, survey.csv and pictures of the damage."""
    given, screen = search.build(), gateway.screen
    files = _check_files(sources, gpx)
    if skipped := _count_others(sources):
        screen.note(f"[yellow]skipped, as neither photographs nor films that are read: {escape(skipped)}.[/]")
    output.mkdir(parents=True, exist_ok=True)
    with gateway.open() as client:
        observations: list[Any] = []
        try:
            for part in split_by_size(files, MAX_REQUEST_BYTES, _measure):
                try:
                    seen = _observe(client, screen, part, gpx, {**given, "route": False, "boxed": True})
                except BadInput as error:
                    is_its_own = len(part) == 1 and error.status != InvalidOption.status and error.field != "gpx"
                    if not is_its_own or len(files) == 1:
                        raise
                    seen = [_describe_lost(part[0][0], error)]
                _save_pictures(seen, output, len(observations))
                observations += _drop_empty(seen)
            found = _count(client, screen, {**given, "observations": observations}, output)
        except BaseException:
            _keep(screen, {**given, "observations": observations}, output)
            raise
    _print(screen, found, output)
    if found["failed"]:
        raise typer.Exit(OUTCOME)


def _check_files(sources: Sequence[Path], gpx: Path | None) -> list[tuple[str, Path]]:
    """The photographs, and at most one film; a mistake is found before a long search."""
    if missing := [source for source in sources if not source.exists()]:
        raise NotFound(f"There is no file or folder {str(missing[0])!r}.")
    if not (files := list(_find_files(sources))):
        hint = f"Read are {', '.join(sorted(PHOTOGRAPHS | FILMS))}."
        raise NotFound("There is no photograph and no film among the sources.", hint=hint)
    if len(films := [name for name, file in files if file.suffix.lower() in FILMS]) > 1:
        hint = "Survey one film at a time, each with its --start."
        raise InvalidOption(f"{films[0]} and {films[1]} can't begin at the same place of a track.", hint=hint)
    if films and gpx is None:
        raise InvalidOption(f"The film {films[0]} has no places of its own.", hint="Give its track with --gpx.")
    return files


def _find_files(sources: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Photographs and films with their names: below a folder, its path from there; as given where several share one.

    The pictures of an earlier survey are left out: their boxes would be counted as damage without a place.
    """
    found = {
        os.path.realpath(path): (path.relative_to(source).as_posix() if source.is_dir() else path.name, path)
        for source in sources
        for path in (sorted(source.rglob("*")) if source.is_dir() else [source])
        if path.suffix.lower() in PHOTOGRAPHS | FILMS and path.name[0] != "."
        if path.is_file() or not path.exists()  # a link to a file that is gone is reported
        if not (re.search(r"(^|/)pictures/\d{4,}-", path.as_posix()) and (path.parents[1] / "survey.json").exists())
    }
    counts = Counter(name for name, _ in found.values())
    chosen = ((name if counts[name] == 1 else path.as_posix(), path) for name, path in found.values())
    return ((name.encode(errors="replace").decode(), path) for name, path in chosen)  # of other encodings than UTF-8


def _count_others(sources: Sequence[Path]) -> str:
    """Count by suffix the files among the sources that are not read, such as `.dng 3, .avi 1`."""
    files = (path for source in sources for path in (source.rglob("*") if source.is_dir() else [source]))
    suffixes = Counter(path.suffix.lower() or path.name for path in files if path.is_file() and path.name[0] != ".")
    others = {name: count for name, count in suffixes.most_common() if name not in PHOTOGRAPHS | FILMS | {".gpx"}}
    return _list_counts(others)


def _measure(file: Path) -> int:
    """Bytes of a photograph; a film goes alone."""
    if file.suffix.lower() in FILMS:
        return MAX_REQUEST_BYTES + 1
    return file.stat().st_size if file.exists() else 0


def _observe(
    client: Client, screen: Screen, files: Sequence[tuple[str, Path]], gpx: Path | None, options: dict[str, Any]
) -> list[Any]:
    """Search one part as a job; its field names say which is the film. Files that can't be read have a problem."""
    parts, lost = {}, list[Any]()
    for place, (name, file) in enumerate(files):
        field = "video" if file.suffix.lower() in FILMS else f"image{place}"
        try:
            parts[field] = (name, read_path(file), "application/octet-stream")
        except NotFound as error:
            lost.append(_describe_lost(name, error))
    if not parts:
        return lost
    if gpx is not None:
        parts["gpx"] = (gpx.name, read_path(gpx), "application/gpx+xml")
    form = {name: str(value) for name, value in options.items()}
    with job_result(client, screen, Call("POST", PATH, read_json, files=parts, form=form)) as found:
        observations: list[Any] = found["observations"]
    return observations + lost


def _describe_lost(name: str, error: FoveaError) -> dict[str, Any]:
    """The observation of a file that was not searched."""
    return {"name": name, "problem": error.detail, "place_problem": "The file was not read."}


def _drop_empty(value: Any) -> Any:
    """A JSON value without fields that hold nothing: a body may have only so many parts."""
    if isinstance(value, dict):
        return {name: _drop_empty(each) for name, each in value.items() if each is not None and each != []}
    return [_drop_empty(each) for each in value] if isinstance(value, list) else value


def _keep(screen: Screen, body: dict[str, Any], output: Path) -> None:
    """Keep what was found before a survey broke off: it can be counted without another search."""
    if body["observations"]:
        (output / "observations.json").write_text(json.dumps(body), "utf8")
        screen.note(f"[yellow]What was found so far is in {escape(str(output))}/observations.json, for POST {PATH}.[/]")


def _save_pictures(observations: Sequence[dict[str, Any]], output: Path, first: int) -> None:
    """Write the pictures with boxes, and put their links into the observations instead."""
    for number, one in enumerate(observations, first):
        boxed = one.pop("boxed", None)
        if boxed is not None:
            path = Path(one["name"])
            letters = path.name if "#" in path.name else path.stem
            stem = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in letters)[:60]
            one["picture"] = f"pictures/{number:04d}-{stem}.jpg"
            (output / "pictures").mkdir(exist_ok=True)
            (output / one["picture"]).write_bytes(base64.b64decode(boxed))


def _count(client: Client, screen: Screen, body: dict[str, Any], output: Path) -> dict[str, Any]:
    """Count the observations in one job, write all forms of the survey, and return it."""
    headers = {"accept": "application/zip"}
    job = client.send(endpoints.as_job(Call("POST", PATH, read_json, json=body, headers=headers), None))
    follow_job(client, screen, job, title="counting")
    with zipfile.ZipFile(io.BytesIO(client.jobs.result(job.id).content)) as archive:
        for name in FORMS:
            (output / name).write_bytes(archive.read(name))
    found: dict[str, Any] = json.loads((output / "survey.json").read_text("utf8"))
    return found


def _print(screen: Screen, found: dict[str, Any], output: Path) -> None:
    facts = {name: value for name, value in found.items() if name not in {"observations", "segments"}}
    if screen.wrote(facts):
        return
    route = found["route"]
    lost = _list_counts(found["counts_not_placed"])
    rows = {
        "pictures": f"{found['pictures']} ({len(found['without_place'])} without a place)",
        "road": f"{found['length_km']:.3f} km",
        "damage": _list_counts(found["counts"]) or ("none with a place" if lost else "none found"),
        "found, not placed": lost,
        "per km": "–" if found["per_km"] is None else f"{found['per_km']:.1f}",
        "route": f"{route['length_m']:.0f} m" if route else "–",
    }
    screen.facts({name: value for name, value in rows.items() if value})
    for text in (*found["place_problems"], *found["failed"], *found["notes"]):
        screen.note(f"[yellow]{escape(text)}[/]")
    screen.note(f"wrote {output}/survey.json, .geojson, .svg, .csv and pictures/", markup=False)


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{label} {count}" for label, count in counts.items())
