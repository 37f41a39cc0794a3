"""Studies over HTTP: as forms, archives and stored by a PACS; and against a real Orthanc."""

import base64
import io
import json
import shutil
import subprocess
import zipfile
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import generate_uid
from starlette.testclient import TestClient

from fovea.errors import InvalidOption, NotFound, NotReady
from fovea_dicom import routes, study
from fovea_dicom.bodies import build_related, parse_related
from fovea_dicom.reading import read_frame
from fovea_dicom.web_client import DicomWebClient, PacsSettings
from plugins.dicom.tests.test_dicom_objects import raw
from plugins.dicom.tests.test_dicom_study import film, to_file
from services.medical_seg.models.pranet import PraNetSegmenter
from shared.vision.draw import encode
from shared.vision.limits import DEFAULT_BOUNDS
from tests.harness.models import client_of, ok
from tests.harness.waiting import free_port, wait_until

EXAMPLE = PraNetSegmenter.folder.parent / "models" / "example.jpg"
ORTHANC = shutil.which("Orthanc") or shutil.which("orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def endoscopy(frames: int = 2, spacing: list[float] | None = None) -> bytes:
    """A film of the example picture, as an endoscope's system would export it."""
    facts = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "PatientID": "SECRET-ID"}
    facts |= {"PatientName": "SECRET^NAME", **({"PixelSpacing": spacing} if spacing else {})}
    return to_file(film(*[np.asarray(Image.open(EXAMPLE).convert("RGB"))] * frames, **facts))


def served(folder: Path, **more: Any) -> AbstractContextManager[TestClient]:
    return client_of(folder, "medical-seg", {"pranet": PraNetSegmenter}, **more)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with served(tmp_path_factory.mktemp("fovea")) as made:
        yield made


def test_a_study_is_segmented_with_areas_in_square_millimetres_and_each_file_is_known_by_its_name(client):
    files = [
        ("files", ("IM0", endoscopy(spacing=[0.2, 0.1]))), ("files", ("b.dcm", raw("CT_small.dcm"))),
        ("files", ("c.txt", b"no")), ("files", ("cut.dcm", raw("MR_small.dcm")[:4000])),
        ("files", ("DICOMDIR", raw("DICOMDIR"))), ("files", ("empty.dcm", b"")),
    ]  # fmt: skip
    url = "/v1/segment/dicom?include=segmentation&include=report&include=strip"
    found = ok(client.post(url, files=files, data={"threshold": "0.5"}))
    assert "SECRET" not in json.dumps({k: v for k, v in found.items() if k != "series"})
    assert (found["frames"], {one["instances"][0]["file"] for one in found["series"]}) == (3, {"IM0", "b.dcm"})
    skipped = dict(text.split(": ", 1) for text in found["skipped"])
    assert skipped.keys() == {"c.txt", "DICOMDIR", "empty.dcm", "cut.dcm"}
    assert skipped["c.txt"] == "The file can't be read as DICOM."
    assert "index of files" in skipped["DICOMDIR"]
    series = next(one for one in found["series"] if one["instances"][0]["modality"] == "ES")
    frames = series["instances"][0]["frames"]
    picture = client.post("/v1/segment", files={"image": encode(np.asarray(Image.open(EXAMPLE).convert("RGB")))}).json()
    assert [(one["frame"], one["area"]) for one in frames] == [(1, picture["area"]), (2, picture["area"])]
    assert frames[0]["area_mm2"] == pytest.approx(picture["area"] * 0.02)
    assert picture["area"] > 0
    seg, report = (dcmread(io.BytesIO(base64.b64decode(series[name]))) for name in ("segmentation", "report"))
    assert (seg.Modality, report.Modality, int(seg.NumberOfFrames)) == ("SEG", "SR", 2)
    assert seg.pixel_array[0].sum() == frames[0]["area"]
    assert str(seg.PatientName) == "SECRET^NAME"  # a derived object belongs to its patient
    assert Image.open(io.BytesIO(base64.b64decode(series["strip"]))).format == "JPEG"


def test_what_weights_of_your_own_mark_is_not_called_a_polyp(client, monkeypatch):
    labels = []
    for _ in range(2):
        found = ok(client.post("/v1/segment/dicom", files={"files": ("a.dcm", endoscopy(frames=1))}))
        seg = dcmread(io.BytesIO(base64.b64decode(found["series"][0]["segmentation"])))
        labels.append(seg.SegmentSequence[0].SegmentLabel)
        monkeypatch.setattr(routes, "shipped_weights", dict)
    assert labels == ["polyp", "lesion"]


def test_an_archive_or_one_file_will_do(client):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("study/a.dcm", raw("MR_small.dcm"))
        archive.writestr("study/report.dcm", raw("test-SR.dcm"))
    answer = client.post(
        "/v1/segment/dicom", content=out.getvalue(), headers={"content-type": "application/zip"},
        params={"window": "600,1600"},
    )  # fmt: skip
    assert ok(answer)["skipped"] == ["study/report.dcm: SR without a picture."]
    form = [("files", (name, data)) for name, data in (("b.dcm", raw("CT_small.dcm")), ("a.zip", out.getvalue()))]
    answer = ok(client.post("/v1/segment/dicom", files=form))
    assert [one["instances"][0]["file"] for one in answer["series"]] == ["b.dcm", "study/a.dcm"]
    assert client.post("/v1/segment/dicom", files=[form[1], ("files", ("c.zip", b"PK\3\4"))]).status_code == 400
    headers = {"content-type": "application/dicom"}
    one = client.post("/v1/segment/dicom", content=raw("MR_small.dcm"), headers=headers).json()
    assert one["series"][0]["instances"][0]["pixel_size"]["row_mm"] == 0.3125


def test_a_corrected_mask_is_sent_back(client):
    film = endoscopy(frames=2)
    answer = client.post("/v1/segment/dicom?include=segmentation,masks", files={"files": ("a.dcm", film)}).json()
    (series,) = answer["series"]
    frames = series["instances"][0]["frames"]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(frames[0]["mask"])))).copy()
    mask[:4, :5] = 255 - mask[:4, :5]
    uid = series["instances"][0]["instance"]
    parts = [
        ("files", ("a.dcm", film)),
        ("segmentation", ("s.dcm", base64.b64decode(series["segmentation"]))),
        ("corrected0", (f"{uid}.1.png", encode(mask))),
    ]
    done = ok(client.post("/v1/segment/dicom/corrections", files=parts, data={"creator": "Doe"}))
    area = frames[1]["area"] + int((mask > 0).sum())
    assert (done["version"], done["changed"], done["area"]) == (2, [f"{uid}.1"], area)
    back = dcmread(io.BytesIO(base64.b64decode(done["segmentation"])))
    assert (back.InstanceNumber, str(back.ContentCreatorName)) == (2, "Doe")
    for missing, told in ((1, "Send one segmentation"), (0, "is missing"), (2, "no corrected mask")):
        refused = client.post("/v1/segment/dicom/corrections", files=[p for n, p in enumerate(parts) if n != missing])
        assert (refused.status_code, told in refused.text) == (422, True), refused.text
    odd = client.post("/v1/segment/dicom/corrections", files=[*parts, ("mask", ("m.png", b"x"))])
    assert (odd.status_code, odd.json()["field"]) == (422, "mask")


def test_frames_are_rendered_as_the_network_sees_them(client, monkeypatch):
    film, url = endoscopy(frames=2), "/v1/segment/dicom/pictures"
    files = [("files", ("a.dcm", film)), ("files", ("b.dcm", b"nope"))]
    found = client.post(url, files=files).json()
    assert [(one["file"], one["frame"]) for one in found["pictures"]] == [("a.dcm", 1), ("a.dcm", 2)]
    assert found["skipped"] == ["b.dcm: The file can't be read as DICOM."]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["pictures"][1]["picture"]))))
    one = dcmread(io.BytesIO(film))
    assert np.array_equal(shown, read_frame(one, 1, None, DEFAULT_BOUNDS))
    assert found["pictures"][0]["instance"] == one.SOPInstanceUID
    assert {client.post(url, files=body).status_code for body in ({"files": ("b.dcm", b"nope")}, {})} == {415}
    assert client.post(f"{url}?window=1", files=files).status_code == 422
    monkeypatch.setattr(study, "MOST_RENDERED", 1)
    refused = client.post(url, files=files)
    assert (refused.status_code, refused.json()["detail"]) == (413, "There are 2 frames; at most 1 are rendered.")


def test_mistakes_are_named(client):
    for request_, status, told in (
        ({"content": b"x", "headers": {"content-type": "application/dicom"}}, 415, "no picture"),
        ({"content": b"x", "headers": {"content-type": "application/zip"}}, 400, "zip"),
        ({"content": b"x", "headers": {"content-type": "image/png"}}, 415, "image/png"),
        ({"files": {}}, 422, "no file"),
        ({"params": {"study": "1.2.3"}}, 409, "No PACS"),
        ({"params": {"nope": "1"}}, 422, "nope"),
        ({"params": {"series": "1.2"}, "files": {"files": ("a", b"x")}}, 422, "is one of a `study`"),
        ({"params": {"study": "1.2"}, "files": {"files": ("a", b"x")}}, 422, "not both"),
        ({"params": {"store": "true"}, "files": {"files": ("a", b"x")}}, 409, "No PACS"),
        ({"params": {"window": "x"}, "files": [("files", ("a", b"x"))]}, 422, "window"),
    ):
        answer = client.post("/v1/segment/dicom", **request_)
        assert answer.status_code == status, answer.text
        assert told in answer.text


def test_what_is_stored_here_is_queued_where_somebody_waits_and_segmented_by_the_worker(client):
    kind, body = build_related([raw("MR_small.dcm"), raw("test-SR.dcm")])
    waits = {"content-type": kind, "x-fovea-deadline-ms": "60000"}
    answer = client.post("/v1/dicomweb/studies", content=body, headers=waits)
    assert (answer.status_code, answer.headers["x-fovea-wants"]) == (409, "respond-async")
    done = client.post("/v1/dicomweb/studies", content=body, headers={"content-type": kind})
    assert done.status_code == 200, done.text
    assert done.headers["content-type"].startswith("application/dicom+json")
    taken = done.json()["00081199"]["Value"]
    assert taken[0]["00081155"]["Value"] == [str(dcmread(io.BytesIO(raw("MR_small.dcm"))).SOPInstanceUID)]
    assert len(done.json()["00081198"]["Value"]) == 1
    assert client.post("/v1/dicomweb/studies", content=b"x", headers={"content-type": kind}).status_code == 400


def test_a_pacs_that_fails_is_a_problem_with_a_reason_and_an_empty_address_is_none(monkeypatch):
    monkeypatch.setenv("FOVEA_DICOMWEB_URL", "")
    assert PacsSettings().url is None

    def refuses(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404 if "9.9" in str(request.url) else 401)

    pacs = DicomWebClient("http://pacs.test/dicom-web", transport=httpx2.MockTransport(refuses))
    nobody = DicomWebClient("http://127.0.0.1:9")
    for ask, error, told in (
        (pacs.search_studies, NotReady, "401"), (lambda: pacs.retrieve("9.9"), NotFound, None),
        (lambda: pacs.retrieve("../instances"), InvalidOption, "UID"),
        (lambda: nobody.store([b"x"]), NotReady, "can't be reached"),
    ):  # fmt: skip
        with pytest.raises(error, match=told):
            ask()
    nobody.close()
    pacs.close()


def test_found_studies_have_the_fields_of_the_example_and_modalities_are_always_a_list(client, monkeypatch):
    kinds = {"0020000D": ["1.2"], "00080020": ["20260102"], "00080061": ["US"], "00201206": [1], "00201208": [2]}
    rows = [{tag: {"Value": values} for tag, values in kinds.items()}, {"00080061": {"Value": ["US", "SR"]}}, {}]
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=rows))
    monkeypatch.setattr(routes, "_open_pacs", lambda: DicomWebClient("http://pacs.test", transport=transport))
    found = client.get("/v1/dicomweb/studies").json()
    assert [one["ModalitiesInStudy"] for one in found] == [["US"], ["US", "SR"], []]
    examples = json.loads((Path(routes.__file__).parent / "api_examples.json").read_text())
    (shown,) = examples["GET /v1/dicomweb/studies"]["answer"]
    first, wanted = ({name: type(value) for name, value in study.items()} for study in (found[0], shown))
    assert first == wanted


@pytest.mark.parametrize("status", [202, 409])
def test_what_a_pacs_does_not_take_is_told_with_its_reason(client, monkeypatch, status):
    def takes_reports_only(request: httpx2.Request) -> httpx2.Response:
        made = [dcmread(io.BytesIO(part)) for part in parse_related(request.headers["content-type"], request.content)]
        rows = {one.Modality: {"00081155": {"vr": "UI", "Value": [one.SOPInstanceUID]}} for one in made}
        rows["SEG"]["00081197"] = {"vr": "US", "Value": [0x0122]}
        body = {"00081198": {"vr": "SQ", "Value": [rows["SEG"]]}}
        return httpx2.Response(status, json=body | ({"00081199": {"Value": [rows["SR"]]}} if status == 202 else {}))

    transport = httpx2.MockTransport(takes_reports_only)
    monkeypatch.setattr(routes, "_open_pacs", lambda: DicomWebClient("http://pacs.test", transport=transport))
    found = client.post("/v1/segment/dicom?store=true", files={"files": endoscopy(1)}).json()
    (series,) = found["series"]
    seg, report = (dcmread(io.BytesIO(base64.b64decode(series[name]))) for name in ("segmentation", "report"))
    assert found["stored"] == ([report.SOPInstanceUID] if status == 202 else [])
    told = f"The PACS refused {seg.SOPInstanceUID} with the reason 0122 (it does not take objects of this class)."
    assert found["warnings"] == [told]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    if ORTHANC is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    port = free_port()
    config = {
        "Name": "TEST", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomPort": free_port(), "RemoteAccessAllowed": False, "AuthenticationEnabled": True,
        "RegisteredUsers": {"fovea": "secret"}, "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], **quiet)
    url = f"http://127.0.0.1:{port}/dicom-web"

    def answers() -> bool:
        assert server.poll() is None, "Orthanc did not start"
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"{url}/studies") is not None
        return False

    try:
        wait_until(answers, 60, "an answer of Orthanc")
        yield url
    finally:
        server.terminate()
        server.wait(20)


LOGIN = "Basic " + base64.b64encode(b"fovea:secret").decode()


@pytest.mark.release
def test_a_study_goes_from_orthanc_to_a_segmentation_in_orthanc(orthanc, tmp_path, monkeypatch):
    pacs, film = DicomWebClient(orthanc, authorization=LOGIN), endoscopy()
    ct = raw("CT_small.dcm")
    taken, refused = pacs.store([film, ct])
    assert (len(taken), refused) == (2, [])
    study = str(dcmread(io.BytesIO(film)).StudyInstanceUID)
    stranger = DicomWebClient(orthanc)
    with pytest.raises(NotReady, match="401"):
        stranger.search_studies()
    stranger.close()
    monkeypatch.setenv("FOVEA_DICOMWEB_URL", orthanc)
    monkeypatch.setenv("FOVEA_DICOMWEB_AUTHORIZATION", LOGIN)
    with served(tmp_path) as client:
        listed = client.get("/v1/dicomweb/studies").json()
        assert {row["StudyInstanceUID"] for row in listed} == {study, str(dcmread(io.BytesIO(ct)).StudyInstanceUID)}
        assert "SECRET" not in json.dumps(listed)
        (row,) = client.get("/v1/dicomweb/studies", params={"StudyInstanceUID": study}).json()
        assert row["ModalitiesInStudy"] == ["ES"]
        assert client.get("/v1/dicomweb/studies", params={"PatientName": "x"}).status_code == 422
        found = ok(client.post("/v1/segment/dicom", params={"study": study, "store": True}))
        assert (found["frames"], len(found["stored"])) == (2, 2)
        assert client.post("/v1/segment/dicom", params={"study": "1.2.3.4"}).status_code == 404
    back = [dcmread(io.BytesIO(data)) for data in pacs.retrieve(study)]
    pacs.close()
    kinds = {one.Modality: one for one in back}
    assert set(kinds) == {"ES", "SEG", "SR"}
    assert {str(kinds[name].SOPInstanceUID) for name in ("SEG", "SR")} == set(found["stored"])
    reference = kinds["SEG"].ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert reference.ReferencedSOPInstanceUID == kinds["ES"].SOPInstanceUID
    assert kinds["SEG"].pixel_array[0].sum() == found["series"][0]["instances"][0]["frames"][0]["area"]
