"""`fovea correct …`: corrected masks become a new version of a DICOM segmentation."""

import base64
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.call import Call, read_json
from fovea.cli.common_options import GatewayOptions
from fovea.cli.job_progress import run_as_job
from fovea.errors import NotFound
from fovea.picture import read_path
from fovea_dicom.segment_study import PACS, PATH, is_dicom, list_files, unpack


def correct(
    segmentation: Annotated[Path, typer.Argument(metavar="SEGMENTATION", help="The *.seg.dcm to correct.")],
    corrected: Annotated[
        list[Path], typer.Argument(metavar="MASK…", exists=True, help="Edited PNGs, their folder, or a DICOM SEG.")
    ],
    pictures: Annotated[
        str, typer.Option("--pictures", "-p", help="The study that was segmented: FILE, FOLDER, zip or pacs:STUDY_UID.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("out"),
    creator: Annotated[str, typer.Option(help="Name of the corrector; stored in the segmentation.")] = "",
    *,
    gateway: GatewayOptions,
) -> None:
    """Send corrected masks back: writes a new version of the segmentation, and a report of its areas."""
    screen, form = gateway.screen, {"creator": creator}
    parts = {"segmentation": _read(segmentation.name, segmentation)}
    masks = [row for one in corrected for row in list_files(str(one))]
    parts |= {f"corrected{place}": _read(*row) for place, row in enumerate(masks)}
    if pictures.startswith(PACS):
        form["study"] = pictures.removeprefix(PACS)
    else:
        with unpack(pictures) as folder:
            files = [row for row in list_files(folder) if is_dicom(row[1])]
            if not files:
                raise NotFound(f"There is no DICOM file in {pictures}.", hint="Name the study that was segmented.")
            parts |= {f"files{place}": _read(*row) for place, row in enumerate(files)}
    with gateway.open() as client:
        call = Call("POST", f"{PATH}/corrections", read_json, files=parts, form=form)
        found: dict[str, Any] = run_as_job(client, screen, call)
    output.mkdir(parents=True, exist_ok=True)
    stem = f"{segmentation.name.removesuffix('.seg.dcm')}.v{found['version']}"
    for name, suffix in (("segmentation", "seg.dcm"), ("report", "sr.dcm")):
        (output / f"{stem}.{suffix}").write_bytes(base64.b64decode(found.pop(name)))
    if not screen.wrote({**found, "written": [f"{stem}.seg.dcm", f"{stem}.sr.dcm"]}):
        changed = f"{len(found['changed'])} frames changed, {found['area']} px in {found['frames']} frames"
        screen.facts({"version": found["version"], "corrected": changed, "wrote": output / f"{stem}.seg.dcm, .sr.dcm"})
    for reason in found["skipped"]:
        screen.note(f"[yellow]skipped: {escape(reason)}[/]")


def _read(name: str, path: Path) -> tuple[str, bytes, str]:
    return name, read_path(path), "application/octet-stream"
