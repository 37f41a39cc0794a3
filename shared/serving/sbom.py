"""Bill of materials of an image: turns `pip inspect` (standard input) into CycloneDX 1.6.

`pip inspect | python -m shared.serving.sbom NAME`.
"""

import json
import re
import sys
from typing import Any


def _component(package: dict[str, Any]) -> dict[str, Any]:
    facts = package["metadata"]
    name = re.sub(r"[-_.]+", "-", facts["name"]).lower()
    licence = facts.get("license_expression") or facts.get("license") or ""
    found = {
        "type": "library",
        "name": facts["name"],
        "version": facts["version"],
        "purl": f"pkg:pypi/{name}@{facts['version']}",
    }
    short = licence.strip().splitlines()[0][:100] if licence.strip() else ""
    return {**found, "licenses": [{"license": {"name": short}}]} if short else found


def bill_of_materials(name: str, inspected: dict[str, Any]) -> dict[str, Any]:
    """The whole document, packages in the order of their names."""
    components = sorted(map(_component, inspected["installed"]), key=lambda one: one["purl"])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name}},
        "components": components,
    }


if __name__ == "__main__":
    json.dump(bill_of_materials(sys.argv[1], json.load(sys.stdin)), sys.stdout, indent=1)
