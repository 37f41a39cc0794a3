"""Cold starts of images: seconds from `podman run` to the first answer, with all files read from the disk.

Measures the images that `deploy/images.sh` has built here. Needs podman and root.
"""

import os
import shutil
import statistics
import sys
from collections.abc import Iterator

from loadtests.bench.result import Row, Table, row
from loadtests.image_start import Image
from shared.registry.discovery import SERVICES

TARGET_S = 10.0


def measure(rounds: int = 3, count: int = 200) -> Table:
    """Start each image `rounds` times.

    Raises:
        SystemExit: There is no podman, or no image of ours.
    """
    del count
    if shutil.which("podman") is None or os.geteuid():
        sys.exit("Cold starts of images need root and podman. Try: apt-get install podman runc")
    rows = list(_measure_images(rounds))
    if not rows:
        sys.exit("There is no image to start. Try: FLAVOUR=onnx deploy/images.sh medical-seg")
    without_torch = [one.median for one in rows if one.name.endswith((", onnx", "gateway, cpu"))]
    name = "slowest first answer of an image without torch (s, at most)"
    return Table(
        suite="image_starts",
        title="Cold starts of images",
        how="`podman run` until a gateway has passed on the first answer, page cache dropped before each start; "
        "processor time is the container's until then",
        baseline=f"{TARGET_S:.0f} s",
        rows=rows,
        targets={name: (max(without_torch), TARGET_S)} if without_torch else {},
    )


def _measure_images(rounds: int) -> Iterator[Row]:
    for service in ("gateway", *SERVICES):
        for flavour in ("onnx", "cpu"):
            image = Image(service, flavour)
            if not (size := image.size):
                continue
            starts = image.measure(rounds, cold=True)
            spent = statistics.median(one.processor_s for one in starts)
            note = f"image of {size / 1e6:,.0f} MB; {spent:.1f} s of processor time"
            yield row(f"{service}, {flavour}", "s", [one.seconds for one in starts], TARGET_S, note)
