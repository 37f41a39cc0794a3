"""Make the pictures of the gallery: `make gallery`, with Fovea running next to it (`make run`).

Runs the shell blocks of `docs/gallery.md` as they stand, in a folder with the samples, and writes their pictures to
where the console's first page shows them, those of plug-ins included.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx2
from PIL import Image
from sybil import Document, Sybil
from sybil.parsers.markdown import CodeBlockParser

from loadtests.gallery.samples import MINI, write_drive, write_study
from loadtests.gallery.trust_chart import draw_trust
from services.interpretability.core.report import Report
from services.interpretability.rendering.render import render

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/gallery.md"
PICTURES = ROOT / "services/gateway/console/static/gallery"
STUDY = ROOT / "plugins/dicom/fovea_dicom/console/static/study.jpg"
SURVEY = ROOT / "plugins/survey/fovea_survey/console/static/survey.svg"
URL = "http://127.0.0.1:8080"


def main() -> int:
    """Run the page's blocks and keep their pictures; the exit code is 1 where Fovea does not answer."""
    url = os.environ.get("FOVEA_URL", URL)
    try:
        httpx2.get(f"{url}/readyz", timeout=10).raise_for_status()
    except httpx2.HTTPError as error:
        print(f"Fovea is not ready at {url} ({error}). Start it with `make run`, or name its address in FOVEA_URL.")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder / "study")
        write_drive(folder / "drive")
        shutil.copytree(MINI, folder / "mini")
        for block in read_blocks():
            print(block)
            run_block(block.replace(URL, url), folder, url)
        for path in keep_pictures(folder / "out"):
            print(f"{path.stat().st_size / 1000:7.1f} kB  {path.relative_to(ROOT)}")
    return 0


def read_blocks() -> list[str]:
    """The shell blocks of the page, in its order."""
    reader = Sybil([CodeBlockParser("shell", evaluator=lambda _: None)])
    return [str(example.parsed) for example in Document.parse(str(PAGE), *reader.parsers).examples()]


def run_block(block: str, folder: Path, url: str) -> None:
    """Run a block in a folder with this environment's commands; 1 is a result: a judge that does not do better."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", block], cwd=folder, env={**os.environ, "PATH": path, "FOVEA_URL": url}, check=False
    )
    if done.returncode > 1:
        raise SystemExit(done.returncode)


def draw_circuit(report: str) -> bytes:
    """The graph and the curves of a report of edges, as SVG."""
    whole = Report.model_validate_json(report)
    return render(Report(title=whole.title, graphs=whole.graphs, bars=whole.bars), "image/svg+xml") or b""


def _drop_tips(svg: bytes) -> bytes:
    """A drawing without the tips of its cells, which nobody sees in an `<img>`; its own title stays."""
    return re.sub(rb"><title>[^<]*</title></rect>", b"/>", svg)


def keep_pictures(out: Path) -> list[Path]:
    """Write the pictures of the blocks to the console, and say which."""
    strip = Image.open(next(out.glob("series-*.strip.jpg"))).convert("RGB")
    strip.thumbnail((1200, 600))
    study = io.BytesIO()
    strip.save(study, "JPEG", quality=85)
    files = {
        STUDY: study.getvalue(),
        SURVEY: (out / "survey.svg").read_bytes(),
        PICTURES / "trust.svg": draw_trust(json.loads((out / "trust.json").read_text("utf8"))).encode(),
        PICTURES / "heads.svg": _drop_tips((out / "heads.svg").read_bytes()),
        PICTURES / "edges.svg": draw_circuit((out / "edge-attribution.json").read_text("utf8")),
    }
    for path, content in files.items():
        path.write_bytes(content)
    return list(files)


if __name__ == "__main__":
    sys.exit(main())
