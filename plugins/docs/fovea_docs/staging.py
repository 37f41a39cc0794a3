"""Staging: the pages of a checkout as one folder that a site generator builds, with links that lead within it.

Pages keep their paths, so that their links to each other and to pictures work; `README.md` is the site's `index.md`. A
link to a file that is not a page becomes the file's name in code.
"""

import re
import shutil
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from fovea.errors import InvalidOption, NotFound
from fovea_docs.reference import render_reference

Sections = list[tuple[str, list[str]]]
"""Title and pages of each section, in order."""

_LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")
_PAGES = ("*.md", "docs/**/*.md", "plugins/*.md", "plugins/*/README.md")


def find_checkout() -> Path:
    """The root of the repository that this package lies in.

    Raises NotFound: the package was installed without its repository.
    """
    root = Path(__file__).parents[3]
    if not (root / "docs").is_dir():
        hint = "Run `fovea docs` in a clone of the repository, or install a release of fovea-docs."
        raise NotFound("The pages of the documentation are not here.", hint=hint)
    return root


def read_sections(root: Path) -> Sections:
    """The sections with the pages of a checkout; `*` filled with the pages of its folder that no line names.

    Raises InvalidOption: A page is in no section, or a section names a page that does not exist.
    """
    text = files("fovea_docs").joinpath("sections.toml").read_text("utf8")
    wanted = [(one["title"], list(one["pages"])) for one in tomllib.loads(text)["section"]]
    found = {str(file.relative_to(root)) for pattern in _PAGES for file in root.glob(pattern)} | set(render_reference())
    free = found - {page for _, pages in wanted for page in pages}
    sections = []
    for title, pages in wanted:
        named: list[str] = []
        for page in pages:
            matched = sorted(one for one in free if PurePosixPath(one).match(page)) if "*" in page else [page]
            free -= set(matched)
            named += matched
        sections.append((title, named))
    if lost := sorted({page for _, pages in sections for page in pages} - found) or sorted(free):
        raise InvalidOption(f"sections.toml and the pages differ: {', '.join(lost)}.", hint="Add or remove the page.")
    return sections


def stage(root: Path, target: Path, sections: Sections) -> None:
    """Write the pages of `sections`, and the pictures that they show, below `target`."""
    pages = [page for _, names in sections for page in names]
    reference = render_reference()
    for page in pages:
        text = reference[page] if page in reference else (root / page).read_text("utf8")
        out = target / name_page(page)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(_rewrite(text, page, set(pages), root), "utf8")
        for picture in _list_pictures(text, page, root):
            (target / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / picture, target / picture)


def name_page(page: str) -> str:
    """Path of a page in the site."""
    path = PurePosixPath(page)
    return str(path.with_name("index.md")) if path.name == "README.md" else page


def _rewrite(text: str, page: str, pages: set[str], root: Path) -> str:
    def replace(found: re.Match[str]) -> str:
        mark, label, link = found.groups()
        place, _, anchor = link.partition("#")
        if mark or not place or re.match(r"[a-z]+:", link):
            return found[0]
        target = normpath(str(PurePosixPath(page).parent / place))
        if f"{target}/README.md" in pages:
            target = f"{target}/README.md"
        if target in pages:
            there = relpath(name_page(target), str(PurePosixPath(name_page(page)).parent))
            return f"[{label}]({there}{'#' if anchor else ''}{anchor})"
        if not (root / target).exists():
            return found[0]  # the strict build names it
        return label if "`" in label else f"{label} (`{target}`)"

    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(replace, part) for part in parts)


def _list_pictures(text: str, page: str, root: Path) -> Iterator[str]:
    for mark, _, link in _LINK.findall(text):
        target = normpath(str(PurePosixPath(page).parent / link.partition("#")[0]))
        if mark and ":" not in link and (root / target).is_file():
            yield target
