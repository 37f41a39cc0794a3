"""Collections that people labelled, as `loadtests.labelled` writes them: from package lists, and from rated news."""

import zipfile

from fovea_evaluation.imported_collection import parse_collection
from loadtests import labelled

LISTS = """Package: 0xffff
Description: Open Free Fiasco Firmware Flasher
Tag: admin::hardware, hardware::usb, implemented-in::c,
 interface::commandline, use::TODO

Package: gimp
Description: GNU Image Manipulation Program
Tag: field::arts, works-with::image:raster

Package: gimp-data
Description: GNU Image Manipulation Program
Tag: works-with::image

Package: krita
Description-en: pixel-based image manipulation program
Tag: works-with::image:raster

Package: libc6
Description: GNU C Library: Shared libraries
Tag: role::shared-lib
"""


def test_packages_are_labelled_by_their_tags_of_subjects(monkeypatch, tmp_path):
    monkeypatch.setattr(labelled, "LEAST", 1)
    labelled.write_collection(tmp_path, *labelled.read_packages(LISTS))
    found = parse_collection(*((tmp_path / name).read_text() for name in ("documents", "topics", "relevance")))
    told = {(found.topics[topic], found.passages[name]) for topic, name in found.labels}
    gimp, krita = "GNU Image Manipulation Program", "pixel-based image manipulation program"
    flasher = "Open Free Fiasco Firmware Flasher"
    assert told == {
        ("admin hardware", flasher), ("hardware usb", flasher), ("field arts", gimp), ("works with image", gimp),
        ("works with image raster", gimp), ("works with image raster", krita),
    }  # fmt: skip


def test_news_that_people_rated_alike_are_relevant_to_each_other_and_not_to_themselves(tmp_path):
    wheel = tmp_path / "gensim.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gensim/test/test_data/lee.cor", "AMP sheds \xa3400m\nA storm\nShares fall".encode("latin1"))
        archive.writestr("gensim/test/test_data/similarities0-1.txt", "1 0.2 0.6\n0.2 1 0.59\n0.6 0.59 1\n")
    documents, topics, labels = labelled.read_news(wheel)
    assert documents == topics == ["AMP sheds £400m", "A storm", "Shares fall"]
    assert labels == {(1, 3): 1, (3, 1): 1}
