"""A technical collection with known truth from installed packages: `python -m loadtests.docstrings DIR`.

A topic is the summary line of a function of NumPy, SciPy, scikit-learn or scikit-image; its relevant document is the
rest of that function's description, without its name. Writes Cranfield's three files, `documents`, `topics` and
`relevance`, for `fovea judge import`. Real text by people; the truth is known by construction, and nobody read the
documents of other functions, so some of them may answer too.
"""

import importlib
import inspect
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MODULES = (
    "numpy", "numpy.linalg", "numpy.fft", "scipy.stats", "scipy.signal", "scipy.optimize", "scipy.linalg",
    "scipy.sparse", "scipy.spatial", "scipy.interpolate", "scipy.ndimage", "scipy.special", "scipy.integrate",
    "scipy.cluster.hierarchy",
    "skimage.filters", "skimage.morphology", "skimage.measure", "skimage.transform", "skimage.feature",
    "skimage.segmentation", "skimage.restoration", "sklearn.metrics", "sklearn.preprocessing", "sklearn.cluster",
    "sklearn.decomposition", "sklearn.linear_model", "sklearn.ensemble", "sklearn.neighbors",
)  # fmt: skip
TOPICS = 100
LEAST_WORDS, MOST_WORDS = 40, 180
CODE = re.compile(r":\w+:|`+|\.\. .*|>>>.*|\[\d+\]_?|_$")


def main() -> None:
    """Write the files, and say how many of each there are."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    found = dict(sorted(read_functions()))
    asked = sorted(random.Random(0).sample(list(found), TOPICS))
    places = {name: place for place, name in enumerate(found, 1)}
    documents = [f".I {places[name]}\n.T\n{name.split('.')[0]}\n.W\n{text}\n" for name, (_, text) in found.items()]
    topics = [f".I {place}\n.W\n{found[name][0]}\n" for place, name in enumerate(asked, 1)]
    relevance = [f"{place} {places[name]} 1\n" for place, name in enumerate(asked, 1)]
    for file, lines in (("documents", documents), ("topics", topics), ("relevance", relevance)):
        (folder / file).write_text("".join(lines), "utf8")
    print(f"{len(documents)} documents, {len(topics)} topics in {folder}")


def read_functions() -> Iterator[tuple[str, tuple[str, str]]]:
    """Name, summary and description of each public function and class with enough to say."""
    seen: set[str] = set()
    for module in MODULES:
        room = importlib.import_module(module)
        for name in sorted(getattr(room, "__all__", dir(room))):
            thing = getattr(room, name, None)
            if name.startswith("_") or not (callable(thing) or inspect.isclass(thing)):
                continue
            parts = split_docstring(inspect.getdoc(thing) or "", name)
            if parts is not None and parts[0] not in seen:
                seen.add(parts[0])
                yield f"{module}.{name}", parts


def split_docstring(text: str, name: str) -> tuple[str, str] | None:
    """Summary, and the extended description with the notes, in NumPy's form; None where they are short."""
    summary, _, rest = text.partition("\n\n")
    if "(" in summary and ")" in summary and "=" in summary:  # a signature of compiled code
        summary, _, rest = rest.partition("\n\n")
    sections = re.split(r"\n([A-Z][\w ]+)\n-{3,}\n", f"\n{rest}")
    notes = "".join(body for title, body in zip(sections[1::2], sections[2::2], strict=False) if title == "Notes")
    own = re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE)
    summary, body = (own.sub("it", " ".join(CODE.sub("", part).split())) for part in (summary, sections[0] + notes))
    words = body.split()
    if len(summary.split()) < 5 or len(words) < LEAST_WORDS:
        return None
    return summary, " ".join(words[:MOST_WORDS])


if __name__ == "__main__":
    main()
