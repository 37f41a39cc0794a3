"""The first model of docs/09-your-own-data.md, word for word, next to a product that runs already."""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytestmark = [pytest.mark.e2e, pytest.mark.release, pytest.mark.timeout(1800)]

PAGE = pathlib.Path(__file__).parents[2] / "docs/09-your-own-data.md"
PAUSE_S = 10
PROCESSOR_S = 2 * 300
"""Five minutes of two cores."""


def draw_shapes(folder):
    """60 photographs of noise, each with a disc, a square or stripes."""
    rng = np.random.default_rng(0)
    for name in ("disc", "square", "stripes"):
        (folder / name).mkdir(parents=True)
        for index in range(20):
            image = Image.fromarray(rng.integers(60, 200, (240, 320, 3), np.uint8)).resize((640, 480))
            draw, (x, y) = ImageDraw.Draw(image), rng.integers(100, 300, 2).tolist()
            colour = tuple(rng.integers(0, 255, 3).tolist())
            if name == "disc":
                draw.ellipse((x, y, x + 150, y + 150), fill=colour)
            elif name == "square":
                draw.rectangle((x, y, x + 150, y + 150), fill=colour)
            for lower in range(0, 200, 20) if name == "stripes" else ():
                draw.line((x, y + lower, x + 200, y + lower), fill=colour, width=6)
            image.save(folder / name / f"{index:02}.jpg")


def test_the_first_model_is_trained_in_minutes_and_served_at_once(launch, tmp_path):
    running = launch(tmp_path, FOVEA_ENABLED_SERVICES="detection")
    draw_shapes(tmp_path / "shapes")
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    train, ask = block.strip().splitlines()
    running.wait_for(running.is_ready, 400)
    paths = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    told = {**os.environ, "PATH": paths, "FOVEA_DATA_DIR": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"}
    before, times, lines = resource.getrusage(resource.RUSAGE_CHILDREN), [time.monotonic()], []
    with subprocess.Popen(["bash", "-c", train], cwd=tmp_path, env=told, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line)
            times.append(time.monotonic())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, lines
    assert max(np.diff(times)) < PAUSE_S + 2, lines
    assert after.ru_utime - before.ru_utime < PROCESSOR_S
    ask = ask.replace("127.0.0.1:8080", f"127.0.0.1:{running.http}")

    def answer():
        done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout) if '"my-shapes"' in done.stdout else None

    (region,) = running.wait_for(answer, 60)["results"]
    assert {row["label"] for row in region["top"]} == {"disc", "square", "stripes"}
