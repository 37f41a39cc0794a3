"""Children are kept alive, given up on in time, stopped in reverse order, and ended even when nobody stops them."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from shared.serving.up.processes import ProcessDied, ProcessGroup
from tests.harness.waiting import until, wait_until

NAP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
ONCE = f"""
import os, sys
again = os.path.exists("ran")
print("again" if again else "first", flush=True)
if not again:
    open("ran", "w").close()
    sys.exit(3)
{NAP}
"""
FAMILY = """
import os, subprocess, sys, time
inside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
apart = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
print(inside.pid, apart.pid, flush=True)
time.sleep(60)
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as facts:  # noqa: PTH123
            return facts.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ignores(pid, number):
    with open(f"/proc/{pid}/status") as facts:  # noqa: PTH123
        (mask,) = (line.split()[1] for line in facts if line.startswith("SigIgn"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))

    write("nap", NAP)
    write("stubborn", STUBBORN)
    write("family", FAMILY)
    write("once", ONCE)
    write("doomed", "print('why it died', flush=True)\nraise SystemExit(7)")
    write("shows", f"import os; print(os.environ['FOVEA_X'], os.getsid(0) == os.getpid(), flush=True); {NAP}")
    return tmp_path


@pytest.fixture
async def children(modules):
    said = []
    made = ProcessGroup(modules / "logs", {"FOVEA_X": "given"}, said.append, grace_s=1.0)
    made.said = said
    yield made
    await made.stop()


async def test_child_has_its_environment_its_session_and_its_log(children):
    child = await children.add("the child", "shows")
    await until(lambda: "\n" in child.log.read_text())
    assert child.log.name == "the-child.log"
    assert child.log.read_text() == "given True\n"
    child = await children.add("own", "shows", FOVEA_X="own")
    await until(lambda: "own True\n" in child.log.read_text())


async def test_child_that_ends_is_started_again_and_said(children):
    child = await children.add("once", "once")
    await until(lambda: "again\n" in child.log.read_text())
    assert child.log.read_text() == "first\nagain\n"
    assert children.said == [f"once ended (exit code 3); starting it again in 0.5 s. Log: {child.log}"]


async def test_child_that_dies_again_and_again_is_given_up_on_with_its_log_tail(children, monkeypatch):
    monkeypatch.setattr("shared.serving.up.processes._FIRST_RESTART_PAUSE_S", 0.001)
    await children.add("doomed", "doomed")
    with pytest.raises(ProcessDied, match=r"5 times in a minute(?s:.*)why it died"):
        await asyncio.wait_for(asyncio.shield(children.failed), 20)


async def test_all_are_stopped_the_last_started_first(children):
    first, second = await children.add("a", "nap"), await children.add("b", "nap")
    ended = []
    for child in (first, second):
        asyncio.get_running_loop().create_task(child.process.wait()).add_done_callback(
            lambda _, name=child.name: ended.append(name)
        )
    await asyncio.sleep(0)
    await children.stop()
    await until(lambda: len(ended) == 2)
    assert ended == ["b", "a"]
    assert children.said == []


async def test_what_ignores_sigterm_is_killed_after_the_grace(children):
    child = await children.add("stubborn", "stubborn")
    await until(lambda: "\n" in child.log.read_text())
    begun = time.monotonic()
    await asyncio.wait_for(children.stop(), 60)
    assert time.monotonic() - begun > 0.9, "it had its grace"
    assert not alive(child.process.pid)


async def test_grandchildren_are_ended_in_whatever_group_they_are(children):
    child = await children.add("family", "family")
    await until(lambda: "\n" in child.log.read_text())
    pids = [int(word) for word in child.log.read_text().split()]
    assert all(alive(pid) for pid in pids)
    await children.stop()
    assert not any(alive(pid) for pid in pids)


def started(code, **how):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **how)


def test_guard_ends_what_is_left_when_its_supervisor_is_gone():
    supervisor = started(
        f"""
import subprocess, sys, time
command = [sys.executable, "-m", "shared.serving.up.orphan_cleanup"]
watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
child = subprocess.Popen([sys.executable, "-c", {NAP!r}], start_new_session=True)
ended = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
watch.stdin.write(f"+{{child.pid}}\\n+{{ended.pid}}\\n-{{ended.pid}}\\n".encode())
watch.stdin.flush()
print(watch.pid, child.pid, flush=True)
time.sleep(60)
"""
    )
    watch, child = (int(word) for word in supervisor.stdout.readline().split())
    wait_until(lambda: ignores(watch, signal.SIGTERM), 60)
    os.kill(watch, signal.SIGTERM)  # only the supervisor's end counts
    os.kill(watch, signal.SIGINT)
    time.sleep(0.2)
    assert (alive(child), alive(watch)) == (True, True)
    supervisor.kill()
    supervisor.communicate()
    wait_until(lambda: not alive(child) and not alive(watch), 60)


FORKED = """
import os, pathlib, sys, time
from shared.serving.up.forked_replicas import ForkedReplicas
here = pathlib.Path(sys.argv[1])
def run(service):
    before = len(list(here.glob(f"{service}.*.pid")))
    print("says", service, flush=True)
    (here / f"{service}.{os.getpid()}.pid").touch()
    if service == "frail" and not before:
        sys.exit(7)
    time.sleep(60)
ForkedReplicas(["frail", "firm"], run, here, 5).serve()
"""


def test_forked_replicas_have_logs_start_again_and_end_with_their_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", FORKED, str(tmp_path)], stdout=subprocess.PIPE, text=True)

    def pids(service):
        return [int(file.name.split(".")[1]) for file in tmp_path.glob(f"{service}.*.pid")]

    wait_until(lambda: len(pids("frail")) == 2 and pids("firm"), 60)
    (firm,), (frail,) = pids("firm"), [pid for pid in pids("frail") if alive(pid)]
    os.kill(frail, signal.SIGKILL)
    wait_until(lambda: len(pids("frail")) == 3, 60)
    assert alive(firm)
    parent.send_signal(signal.SIGTERM)
    said, _ = parent.communicate(timeout=30)
    assert parent.returncode == 0
    assert not any(alive(pid) for pid in (*pids("frail"), firm))
    assert "code=7" in said
    assert "code=-9" in said
    assert (tmp_path / "frail.log").read_text() == "says frail\n" * 3
