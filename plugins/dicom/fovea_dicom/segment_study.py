"""DICOM: a FILE, FOLDER or zip, or pacs:STUDY_UID, becomes a segmentation, a report, a strip and facts of each series.

The handler of these sources for `fovea segment`. It sends files as they are, in archives below the gateway's limit, and
reads nothing of them except their mark.
"""

import base64
import io
import json
import re
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape

from fovea.call import Call, read_json
from fovea.cli.common_options import Connection
from fovea.cli.input_files import make_unique, split_by_size
from fovea.cli.job_progress import job_result
from fovea.cli.output import Screen
from fovea.errors import Malformed, NotFound
from fovea_dicom import bodies

PACS = "pacs:"
PATH = "/v1/segment/dicom"
MAX_ARCHIVE_BYTES = 48 * 2**20


def accepts(source: str) -> bool:
    """Whether a source is a DICOM file, a folder that holds one, a zip archive, or names a study of the PACS."""
    return source.startswith(PACS) or _is_zip(source) or any(is_dicom(path) for _, path in list_files(source))


def run(
    sources: Sequence[str], options: Mapping[str, Any], output: Path, screen: Screen, connection: Connection
) -> None:
    """Segment studies as jobs, and save SEG, report, strip, masks and facts of each series to a folder."""
    known = {name: str(value) for name, value in options.items() if value is not None}
    params, taken = {**known, "include": "segmentation,report,strip,masks"}, set[str]()
    with connection.open() as client, ExitStack() as opened:
        places = {source: opened.enter_context(unpack(source)) for source in sources}
        single = [
            source for source in sources if Path(places[source]).is_file()
        ]  # as a shell lists those of one series
        for group in [single, *([source] for source in sources if source not in single)]:
            for call in _build_calls([places[source] for source in group], params, screen):
                with job_result(client, screen, call, group[0]) as found:
                    save_series(found, output, screen, taken)


def _build_calls(sources: Sequence[str], params: Mapping[str, str], screen: Screen) -> Iterator[Call[Any]]:
    """The requests for one folder, one study of the PACS, or single files together."""
    if sources and sources[0].startswith(PACS):
        yield Call("POST", PATH, read_json, params={**params, "study": sources[0].removeprefix(PACS)})
        return
    files = [row for source in sources for row in list_files(source)]
    for name, path in files:
        if not is_dicom(path):
            reason = "is empty" if path.stat().st_size == 0 else "is not a DICOM file"
            screen.note(f"[yellow]skipped: {escape(name)} {reason}.[/]")
    # Archives of files, each below the limits.
    sized = split_by_size([row for row in files if is_dicom(row[1])], MAX_ARCHIVE_BYTES)
    parts = [part[at : at + bodies.MAX_FILES] for part in sized for at in range(0, len(part), bodies.MAX_FILES)]
    if sources and not parts:  # only of an archive: others are not accepted
        raise NotFound("There is no DICOM file in the archive.", hint="Unpack it and name the pictures in it.")
    if len(parts) > 1:
        screen.note(f"The files go in {len(parts)} parts; a series in two of them is answered twice.")
    for part in parts:
        headers = {"content-type": "application/zip"}
        yield Call("POST", PATH, read_json, content=zip_files(part), params=dict(params), headers=headers)


@contextmanager
def unpack(source: str) -> Iterator[str]:
    """A folder with the files of a zip archive; any other source as it is.

    Raises Malformed: the archive can't be read.
    """
    if not _is_zip(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="fovea-study-") as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, RuntimeError, OSError, zlib.error) as error:  # RuntimeError: it has a password
            raise Malformed(f"{source} can't be unpacked: {error}.", hint="Unpack it, and name the folder.") from error
        yield folder


def _is_zip(source: str) -> bool:
    return Path(source).is_file() and zipfile.is_zipfile(source)


def list_files(source: str) -> list[tuple[str, Path]]:
    """Return the files of a folder and those below by their paths from there, in order; or the file itself.

    Files whose names begin with a dot are left out: file managers write them. Bytes of names that are not UTF-8 are
    escaped, so that no two names become one.
    """
    path = Path(source)
    files, top = [path], path.parent
    if path.is_dir():
        files, top = [one for one in path.rglob("*") if one.name[0] != "."], path
    named = ((one.relative_to(top).as_posix().encode(errors="backslashreplace").decode(), one) for one in files)
    return sorted((name, one) for name, one in named if one.is_file())


def is_dicom(file: Path) -> bool:
    """Whether a file is one of DICOM, with its mark or without a preamble."""
    with file.open("rb") as opened:
        return bodies.is_dicom(opened.read(132), bare=True)


def zip_files(files: Sequence[tuple[str, Path]]) -> bytes:
    """Pack files under their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, file in files:
            archive.writestr(name, file.read_bytes())
    return out.getvalue()


def save_series(found: dict[str, Any], output: Path, screen: Screen, taken: set[str]) -> None:
    """Write what was found in a study to a folder, and print it with all its warnings.

    Several films of a series, and pictures of several sizes, are answered apart: those after the first get a number,
    where `taken` has the names of this command so far.
    """
    output.mkdir(parents=True, exist_ok=True)
    for series in found["series"]:
        stem, written = make_unique(re.sub(r"[^\w.-]", "_", f"series-{series['series']}"), taken), list[str]()
        taken.add(stem)
        for name, suffix in (("segmentation", "seg.dcm"), ("report", "sr.dcm"), ("strip", "strip.jpg")):
            if series.get(name) is not None:
                (output / f"{stem}.{suffix}").write_bytes(base64.b64decode(series.pop(name)))
                written.append(f"{stem}.{suffix}")
        written += _save_masks(series, output, f"{stem}.masks")
        (output / f"{stem}.json").write_text(json.dumps({**series, "model": found["model"]}, indent=1))
        if not screen.wrote({**series, "model": found["model"], "written": [*written, f"{stem}.json"]}):
            first, *others = (one["file"] for one in series["instances"])
            files = f"{first} and {len(others)} more files" if others else first
            screen.out.print(f"[bold]{escape(stem)}[/] ({escape(files)}) {_summarise(series)}", highlight=False)
        for warning in (*series["warnings"], *_sum_frame_warnings(series)):
            screen.note(f"[yellow]{escape(warning)}[/]")
    for warning in found["warnings"]:
        screen.note(f"[yellow]{escape(warning)}[/]")
    for reason in found["skipped"]:
        screen.note(f"[yellow]skipped: {escape(reason)}[/]")


def _save_masks(series: dict[str, Any], output: Path, folder: str) -> list[str]:
    """Write the masks of frames as `INSTANCE.FRAME.png`, which can be edited and sent back as a correction."""
    written = []
    for instance in series["instances"]:
        for frame in instance["frames"]:
            mask = frame.pop("mask", None)
            if mask is not None:
                (output / folder).mkdir(exist_ok=True)
                name = f"{folder}/{instance['instance']}.{frame['frame']}.png"
                (output / name).write_bytes(base64.b64decode(mask))
                written.append(name)
    return written


def _sum_frame_warnings(series: Mapping[str, Any]) -> Iterator[str]:
    """Each warning of frames once, with the frames that it is about."""
    frames = [frame for one in series["instances"] for frame in one["frames"]]
    counts = Counter(warning for frame in frames for warning in frame["warnings"])
    for warning, count in counts.items():
        yield f"{warning} ({count} of {len(frames)} frames)"


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
