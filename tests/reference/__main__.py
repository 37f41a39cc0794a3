"""`python -m tests.reference URL [PART …]`: records the examples of the API reference from a running platform.

Start one with `fovea up`. It needs all plug-ins and no keys. With parts, for example `judges`, the other examples stay.
"""

import sys

from tests.reference.recorder import Recorder
from tests.reference.scenario import ask_everything

if __name__ == "__main__":
    recorder = Recorder(sys.argv[1])
    ask_everything(recorder, sys.argv[2:])
    for file in recorder.write():
        print(f"wrote {file}")
    for label in recorder.list_missing():
        print(f"has no example: {label}")
