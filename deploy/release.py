"""`make release`: wheels, source archives, chart, images, bill of materials, checksums and provenance of one version.

    .venv/bin/python deploy/release.py [--out out/release] [--images gateway,medical-seg:onnx | --no-images] [--tag]

Everything is built from the committed tree; the same commit gives the same bytes of wheels. `deploy/images.sh` builds
and tries the images, where buildah and podman are installed; without them the release has none, and the output says so.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from shared.serving.sbom import bill_of_materials  # noqa: E402  # of this tree, whatever is installed

IMAGES = (
    "gateway", "vision-restoration", "medical-seg", "detection", "llm-longctx", "interpretability", "relevance-judge",
)  # fmt: skip


class Release:
    """One version of the project at `root`, as files in `out`."""

    def __init__(self, root: Path, out: Path) -> None:
        self.root = root
        found = (sorted(root.glob(f"{folder}/pyproject.toml")) for folder in ("fovea", "weights/*", "plugins/*"))
        self.projects = [root, *(file.parent for files in found for file in files)]
        self.version = _read_version(root / "pyproject.toml")
        self.out = out / self.version

    @cached_property
    def commit(self) -> str:
        """The commit that all is built from, whatever is committed meanwhile."""
        return self._git("rev-parse", "HEAD")

    def check(self) -> None:
        """Refuse what would not be this version: other numbers in the tree, no notes, uncommitted changes."""
        chart_version = re.compile(r'^(version|appVersion): "?([\d.]+)', re.MULTILINE)
        chart = (self.root / "deploy/helm/fovea/Chart.yaml").read_text("utf8")
        numbers = {f"{one.name}/pyproject.toml": _read_version(one / "pyproject.toml") for one in self.projects[1:]}
        numbers |= {f"Chart.yaml {key}": number for key, number in chart_version.findall(chart)}
        if others := [f"{name} ({number})" for name, number in numbers.items() if number != self.version]:
            sys.exit(f"pyproject.toml has version {self.version}; these differ: {', '.join(others)}.")
        if f"## [{self.version}]" not in (self.root / "CHANGELOG.md").read_text("utf8"):
            sys.exit(f"CHANGELOG.md has no section [{self.version}]. Rename [Unreleased], and add the date.")
        if changed := self._git("status", "--porcelain"):
            sys.exit(f"These changes are not committed:\n{changed}")

    def build(self, images: Sequence[str]) -> None:
        """Write all files, and the images of these services, each with its flavour where that is not `cpu`."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        began = datetime.now(UTC)
        with tempfile.TemporaryDirectory(prefix="fovea-release-") as folder:
            tree = Path(folder)
            archive = subprocess.run(["git", "archive", self.commit], cwd=self.root, check=True, capture_output=True)
            subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
            self._add_site(tree)
            for project in self.projects:
                self._build_project(tree / project.relative_to(self.root))
            self._run(_tool("helm"), "package", tree / "deploy/helm/fovea", "--destination", self.out)
            for image in images:
                self._build_image(tree, image)
        self._write_bill()
        self._write_provenance(began)
        sums = "".join(f"{_digest(file)}  {file.name}\n" for file in sorted(self.out.iterdir()))
        (self.out / "SHA256SUMS").write_text(sums, "utf8")

    def tag(self) -> None:
        """Tag the commit."""
        self._git("tag", "--annotate", f"v{self.version}", "--message", f"Fovea {self.version}", self.commit)

    def _build_project(self, folder: Path) -> None:
        env = {**os.environ, "SOURCE_DATE_EPOCH": self._git("log", "-1", "--format=%ct", self.commit)}
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", self.out, folder]
        done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{folder.name} can't be built:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _build_image(self, tree: Path, image: str) -> None:
        """Build an image, send it a request, and save it with its bill of materials."""
        print(f"Building the image of {image} …", flush=True)
        service, _, flavour = image.partition(":")
        env = {"SAVE": str(self.out), "PYTHON": sys.executable, "REVISION": self.commit}
        command, env = [tree / "deploy/images.sh", service], {**os.environ, **env, "FLAVOUR": flavour or "cpu"}
        subprocess.run(command, cwd=tree, env=env, check=True)

    def _add_site(self, tree: Path) -> None:
        """Build the documentation into the plug-in that serves it, so that its wheel holds it."""
        if (tree / "plugins/docs").is_dir():
            path = os.pathsep.join(map(str, (tree, *tree.glob("plugins/*"))))
            command = [sys.executable, "-m", "fovea", "docs", "--build", tree / "plugins/docs/fovea_docs/site"]
            subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": path}, check=True)

    def _write_bill(self) -> None:
        """CycloneDX of the environment that this version was tested in."""
        inspected = json.loads(self._run(sys.executable, "-m", "pip", "inspect"))
        bill = json.dumps(bill_of_materials("fovea", inspected), indent=1)
        (self.out / f"fovea-{self.version}.cdx.json").write_text(bill + "\n", "utf8")

    def _write_provenance(self, began: datetime) -> None:
        """An in-toto statement of SLSA provenance (v1): which commit, built how, gave which bytes."""
        subjects = [{"name": file.name, "digest": {"sha256": _digest(file)}} for file in sorted(self.out.iterdir())]
        commit = {"uri": "git+file:.", "digest": {"gitCommit": self.commit}}
        pins = {"uri": "constraints.txt", "digest": {"sha256": _digest(self.root / "constraints.txt")}}
        ended = datetime.now(UTC)
        times = {"startedOn": f"{began:%Y-%m-%dT%H:%M:%SZ}", "finishedOn": f"{ended:%Y-%m-%dT%H:%M:%SZ}"}
        statement: dict[str, Any] = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subjects,
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {
                "buildDefinition": {
                    "buildType": "make release",
                    "externalParameters": {"version": self.version},
                    "internalParameters": {"python": sys.version.split()[0]},
                    "resolvedDependencies": [commit, pins],
                },
                "runDetails": {"builder": {"id": "deploy/release.py"}, "metadata": times},
            },
        }
        (self.out / "provenance.json").write_text(json.dumps(statement, indent=1) + "\n", "utf8")

    def _git(self, *words: str) -> str:
        return self._run("git", *words).strip()

    def _run(self, *command: str | Path) -> str:
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout


def _read_version(file: Path) -> str:
    return str(tomllib.loads(file.read_text("utf8"))["project"]["version"])


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _tool(name: str) -> str:
    here = Path(sys.executable).with_name(name)
    return str(here) if here.exists() else name


def main(root: Path = ROOT) -> None:
    """Check, build and, if asked, tag."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=root / "out/release")
    parser.add_argument("--tag", action="store_true", help="tag the commit once everything is built")
    parser.add_argument(
        "--images", default=",".join(IMAGES), help="of these services only; `:onnx` or `:gpu` may follow"
    )
    parser.add_argument("--no-images", action="store_true", help="build no images")
    options = parser.parse_args()
    release = Release(root, options.out.resolve())
    release.check()
    missing = [tool for tool in ("buildah", "podman") if shutil.which(tool) is None]
    release.build([] if options.no_images or missing else options.images.split(","))
    if options.tag:
        release.tag()
    print(f"Version {release.version} is in {release.out}: {len(list(release.out.iterdir()))} files.")
    if options.no_images or missing:
        why = "--no-images" if options.no_images else f"{' and '.join(missing)} not installed"
        print(f"It has no images ({why}). This builds one: SAVE={release.out} deploy/images.sh {'|'.join(IMAGES)}")


if __name__ == "__main__":
    main()
