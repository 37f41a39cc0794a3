"""Two collections that people labelled, in Cranfield's three files for `fovea judge import`.

`python -m loadtests.labelled packages DIR` reads Debian's package lists (after `apt-get update`): a document is the
one-line description of a package, a topic is a tag of a subject (`field::biology`), and its labels are the packages to
which Debian's volunteers gave the tag (debtags).

`python -m loadtests.labelled news DIR GENSIM.whl` reads the news texts of Lee, Pincombe & Welsh (2005) from gensim's
wheel. Each text is also a topic; relevant are texts whose likeness people rated 3 or more of 5 on average.
"""

import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

SUBJECTS = (
    "accessibility", "admin", "biology", "field", "game", "hardware", "mail", "network", "office", "protocol",
    "science", "security", "sound", "use", "web", "works-with", "works-with-format",
)  # fmt: skip
"""Facets of tags that say what a package is about, and not what it is made of."""

PACKAGES, LEAST, MOST = 3000, 5, 150
"""Packages drawn, and how many of them a tag must and may have."""
RATED_ALIKE = 0.6

Labels = Mapping[tuple[int, int], int]


def main() -> None:
    """Write the files, and say how many of each there are."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "packages":
        lists = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
        documents, topics, labels = read_packages(lists)
    else:
        documents, topics, labels = read_news(Path(sys.argv[3]))
    write_collection(folder, documents, topics, labels)
    print(f"{len(documents)} documents, {len(topics)} topics, {len(labels)} labels in {folder}")


def write_collection(folder: Path, documents: Iterable[str], topics: Iterable[str], labels: Labels) -> None:
    """Write `documents`, `topics` and `relevance`; labels are {(topic, document): code}, counted from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, texts in (("documents", documents), ("topics", topics)):
        lines = [f".I {place}\n.W\n{text}\n" for place, text in enumerate(texts, 1)]
        (folder / file).write_text("".join(lines), "utf8")
    lines = [f"{topic} {document} {code}\n" for (topic, document), code in labels.items()]
    (folder / "relevance").write_text("".join(lines), "utf8")


def read_packages(lists: str) -> tuple[list[str], list[str], Labels]:
    """Descriptions, tags in words and labels from package lists in Debian's form; a draw with seed 0."""
    found: dict[str, set[str]] = {}
    for record in lists.split("\n\n"):
        summary = re.search(r"^Description(?:-en)?: (.+)", record, re.MULTILINE)
        tags = re.search(r"^Tag: (.*(?:\n .*)*)", record, re.MULTILINE)
        if summary and tags:
            about = {tag for tag in re.split(r"[\s,]+", tags[1]) if tag.partition("::")[0] in SUBJECTS}
            found.setdefault(summary[1], set()).update(tag for tag in about if not tag.endswith("::TODO"))
    tagged = sorted(text for text, about in found.items() if about)
    drawn = sorted(random.Random(0).sample(tagged, min(PACKAGES, len(tagged))))
    holders: dict[str, list[int]] = {}
    for place, text in enumerate(drawn, 1):
        for tag in found[text]:
            holders.setdefault(tag, []).append(place)
    asked = sorted(tag for tag, places in holders.items() if LEAST <= len(places) <= MOST)
    labels = {(number, place): 1 for number, tag in enumerate(asked, 1) for place in holders[tag]}
    return drawn, [" ".join(re.split(r"[:-]+", tag)) for tag in asked], labels


def read_news(wheel: Path) -> tuple[list[str], list[str], Labels]:
    """Texts, the same as topics, and labels of those that people rated alike."""
    with zipfile.ZipFile(wheel) as archive:
        folder = "gensim/test/test_data"
        texts = archive.read(f"{folder}/lee.cor").decode("latin1").strip().split("\n")
        ratings = np.loadtxt(archive.read(f"{folder}/similarities0-1.txt").decode("utf8").splitlines())
    alike = np.argwhere((ratings >= RATED_ALIKE) & ~np.eye(len(texts), dtype=bool)) + 1
    return texts, texts, {(int(topic), int(document)): 1 for topic, document in alike}


if __name__ == "__main__":
    main()
