"""No other user reads state: neither what we write, nor what children write, nor through a folder of before."""

import os
import stat
import subprocess
import sys
from pathlib import Path

from shared.jobs.redis_server import RedisServer
from shared.settings import Settings, environment

PROGRAM = """
import subprocess, sys
from pathlib import Path
from shared.storage.private_files import make_files_private
folder = Path(sys.argv[1])
make_files_private(folder)
(folder / "own").write_text("secret")
subprocess.run(["sh", "-c", f"mkdir {folder}/deep && echo secret > {folder}/deep/child"], check=True)
"""


def _open_to_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if stat.S_IMODE(path.lstat().st_mode) & 0o077]


def test_files_of_a_process_and_its_children_are_private(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], check=True)
    assert len(list(folder.rglob("*"))) == 3
    assert _open_to_others(folder) == []


def test_a_replica_and_its_redis_write_nothing_that_others_read(tmp_path):
    """The real entry points: a worker, which starts and stops, and the Redis of `fovea up`."""
    before = os.umask(0o077)
    try:
        with RedisServer(Settings(data_dir=tmp_path / "state")) as server:
            variables = environment(FOVEA_REDIS_URL=server.url, FOVEA_DATA_DIR=str(tmp_path / "state"))
            command = [sys.executable, "-m", "shared.serving.worker", "medical-seg"]
            with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True, umask=0o022) as worker:
                assert worker.stderr
                while "working" not in (line := worker.stderr.readline()):
                    assert line, "the worker ended"
                worker.terminate()
    finally:
        os.umask(before)
    assert list((tmp_path / "state").rglob("*"))
    assert _open_to_others(tmp_path / "state") == []
