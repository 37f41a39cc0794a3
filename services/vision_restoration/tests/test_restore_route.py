"""`POST /v1/restore`: references, Accept, deadlines. What routes share is tested with them."""

import io

import numpy as np
import pytest
from PIL import Image

from fovea.api.restore import RestoreOut
from services.vision_restoration.models.rrformer import RRFormerRestorer
from services.vision_restoration.restorer import Restorer
from tests.harness.models import answered, client_of

EXAMPLE = (RRFormerRestorer.folder.parent / "models" / "example.jpg").read_bytes()
SIZE = Image.open(io.BytesIO(EXAMPLE)).size


@pytest.fixture(scope="module")
def client(stored, tmp_path_factory):
    class Pane(Restorer):
        """RRFormer, small."""

        folder = stored
        card = RRFormerRestorer.card

    with client_of(tmp_path_factory.mktemp("fovea"), "vision-restoration", {"rrformer": Pane}) as made:
        yield made


def test_a_reference_is_a_second_file(client):
    files = {"image": ("a.jpg", EXAMPLE, "image/jpeg"), "reference": ("b.jpg", EXAMPLE, "image/jpeg")}
    found = answered(client.post("/v1/restore", files=files), RestoreOut)
    assert found.input_likeness.psnr is None
    assert found.likeness.psnr < 60


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("", "restored"),
        ("?include=comparison", "comparison"),
        ("?include=restored,comparison", "restored"),
        ("?picture=comparison", "comparison"),
    ],
)
def test_accept_gives_the_restored_picture_or_what_is_included(client, asked, shown):
    reply = client.post(
        f"/v1/restore{asked}", content=EXAMPLE, headers={"content-type": "image/jpeg", "accept": "image/webp"}
    )
    assert reply.headers["content-type"] == "image/webp"
    width = np.asarray(Image.open(io.BytesIO(reply.content))).shape[1]
    assert width == (2 * SIZE[0] + 8 if shown == "comparison" else SIZE[0])


def test_a_deadline_that_is_too_short_is_said_before_any_work(client, monkeypatch):
    monkeypatch.setattr(Restorer, "_restore", lambda *_: pytest.fail("it was begun"))
    out = io.BytesIO()
    Image.new("RGB", (800, 600)).save(out, "PNG")
    reply = client.post("/v1/restore", files={"image": out.getvalue()}, headers={"x-fovea-deadline-ms": "60"})
    assert reply.status_code == 504
