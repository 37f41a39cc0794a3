"""`python -m tests.reference URL`: records the examples of the API reference from a running platform.

Start one with `fovea up`. It needs all plug-ins and no keys.
"""

import sys
import tempfile
from pathlib import Path

from tests.reference.recorder import Recorder
from tests.reference.scenario import ask_everything

if __name__ == "__main__":
    recorder = Recorder(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        ask_everything(recorder, Path(folder))
    for file in recorder.write():
        print(f"wrote {file}")
    for label in recorder.list_missing():
        print(f"not asked: {label}")
