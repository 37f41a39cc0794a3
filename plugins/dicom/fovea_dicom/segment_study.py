"""DICOM: a FILE or FOLDER, or pacs:STUDY_UID, becomes a segmentation, a report, a strip and the facts of each series.

The handler of these sources for `fovea segment`. It sends files as they are, in archives below the gateway's limit, and
reads nothing of them except their mark.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from fovea import endpoints
from fovea.call import Call, read_json
from fovea.cli.common_options import Connection
from fovea.cli.job_progress import follow_job
from fovea.cli.output import Screen

PACS = "pacs:"
MAX_ARCHIVE_BYTES = 48 * 2**20
_OPTIONS = frozenset({"model", "threshold", "min_area", "keep_largest"})


def accepts(source: str) -> bool:
    """Whether a source is a DICOM file, a folder that holds one, or names a study of the PACS."""
    return source.startswith(PACS) or next(_find_files(source), None) is not None


def run(
    sources: Sequence[str], options: Mapping[str, Any], output: Path, screen: Screen, connection: Connection
) -> None:
    """Segment studies as jobs, and save SEG, report, strip and facts of each series to a folder."""
    known = {name: str(value) for name, value in options.items() if name in _OPTIONS and value is not None}
    params = {**known, "include": "segmentation,report,strip"}
    with connection.open() as client:
        for source in sources:
            for call in _build_calls(source, params):
                job = client.send(endpoints.as_job(call, None))
                follow_job(client, screen, job, title=source)
                _save(client.jobs.result(job.id).json(), output, screen)


def _build_calls(source: str, params: Mapping[str, str]) -> Iterator[Call[Any]]:
    if source.startswith(PACS):
        yield Call("POST", "/v1/segment/dicom", read_json, params={**params, "study": source.removeprefix(PACS)})
        return
    for archive in _pack(_find_files(source)):
        headers = {"content-type": "application/zip"}
        yield Call("POST", "/v1/segment/dicom", read_json, content=archive, params=dict(params), headers=headers)


def _find_files(source: str) -> Iterator[Path]:
    """DICOM files of a folder and those below, in the order of their names; or the file itself."""
    path = Path(source)
    files = (
        sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path] if path.is_file() else []
    )
    for file in files:
        with file.open("rb") as opened:
            if opened.read(132)[128:] == b"DICM":
                yield file


def _pack(files: Iterator[Path]) -> Iterator[bytes]:
    """Archives of files, each below the limit; a file that is larger goes alone."""
    part: list[Path] = []
    size = 0
    for file in files:
        length = file.stat().st_size
        if part and size + length > MAX_ARCHIVE_BYTES:
            yield _zip(part)
            part, size = [], 0
        part.append(file)
        size += length
    if part:
        yield _zip(part)


def _zip(files: Sequence[Path]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for place, file in enumerate(files):
            archive.writestr(f"{place:05d}.dcm", file.read_bytes())
    return out.getvalue()


def _save(found: dict[str, Any], output: Path, screen: Screen) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for series in found["series"]:
        stem, written = f"series-{series['series']}", []
        for name, suffix in (("segmentation", "seg.dcm"), ("report", "sr.dcm"), ("strip", "strip.jpg")):
            if series.get(name) is not None:
                (output / f"{stem}.{suffix}").write_bytes(base64.b64decode(series.pop(name)))
                written.append(f"{stem}.{suffix}")
        (output / f"{stem}.json").write_text(json.dumps({**series, "model": found["model"]}, indent=1))
        if screen.as_json:
            screen.line({**series, "model": found["model"], "written": [*written, f"{stem}.json"]})
            continue
        screen.out.print(f"[bold]{escape(stem)}[/] {_summarise(series)}", highlight=False)
        for warning in series["warnings"]:
            screen.note(f"[yellow]{escape(warning)}[/]")
    for reason in found["skipped"]:
        screen.note(f"[yellow]skipped: {escape(reason)}[/]")


def _summarise(series: Mapping[str, Any]) -> str:
    frames = [frame for one in series["instances"] for frame in one["frames"]]
    found = [frame for frame in frames if not frame["empty"]]
    if not found:
        return f"nothing found in {len(frames)} frames"
    sizes = [frame["area_mm2"] for frame in found]
    largest = (
        f"{max(sizes):.1f} mm²" if all(size is not None for size in sizes) else f"{max(f['area'] for f in found)} px"
    )
    return f"found in {len(found)} of {len(frames)} frames, at most {largest}"
