"""Independent jobs in parallel processes: order, threads, memory, errors, and interrupts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from support import environment
from support.jobs import die, halved, process_and_threads, says, variable

from lib.distributed import jobs
from lib.distributed.jobs import check_jobs, plan_jobs, run_jobs
from lib.errors import InputError, UMAEError


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Workers of an earlier test have its path: they find tests/support by the environment."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


@pytest.mark.parametrize("given,meant", [("auto", None), (1, 1), (3, 3), ("4", 4)])
def test_jobs_are_auto_or_a_number(given, meant):
    assert check_jobs(given) == meant


@pytest.mark.parametrize("given", [0, -1, "0", "many", "", True, 1.5, None])
def test_other_jobs_are_refused(given):
    with pytest.raises(InputError, match="jobs must be auto or a number of processes from 1 on"):
        check_jobs(given)


def test_jobs_run_in_other_processes_and_share_the_threads():
    here = torch.get_num_threads()
    found = run_jobs(process_and_threads, [(k,) for k in range(4)], 2, names="abcd")
    assert len({pid for pid, _ in found}) == 2 and os.getpid() not in {pid for pid, _ in found}
    assert {threads for _, threads in found} == {min(here, plan_jobs(2, 4).threads)}
    alone = run_jobs(process_and_threads, [(0,), (1,)], 1, names="ab")
    assert alone == [(os.getpid(), here)] * 2


def test_values_come_in_the_order_of_the_items_and_lines_as_they_end(capsys):
    values = run_jobs(
        halved, [(n,) for n in (6, 4, 2)], 2, names="abc", line=lambda k, v: f"{k}: {v}"
    )
    assert values == [3.0, 2.0, 1.0]
    assert sorted(capsys.readouterr().out.splitlines()) == ["0: 3.0", "1: 2.0", "2: 1.0"]


def test_what_jobs_print_elsewhere_is_printed_here_and_named_without_their_bars(capsys):
    run_jobs(says, [("one",), ("two",)], 2, names="ab")
    assert sorted(capsys.readouterr().out.splitlines()) == ["a: one", "b: two"]


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_is_named_in_one_line_and_the_others_finish(capsys, number):
    with pytest.raises(InputError, match=r"^b: 3 is odd; give an even number$"):
        run_jobs(
            halved, [(n,) for n in (2, 3, 4)], number, names="abc", line=lambda k, v: f"{k}: {v}"
        )
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == ["0: 1.0", "2: 2.0", "b: 3 is odd; give an even number"]
    with pytest.raises(RuntimeError, match=r"(?s)^2 of 3 failed; a: .*a mistake"):
        run_jobs(halved, [(n,) for n in (-1, 3, 4)], number, names="abc")
    assert "a: ZeroDivisionError: a mistake" in capsys.readouterr().out or number == 1


def empty(_: int) -> None:
    raise AssertionError


def test_an_error_without_a_text_is_named_by_its_kind(capsys):
    with pytest.raises(RuntimeError, match=r"^a: "):
        run_jobs(empty, [(0,)], 1, names="a")
    assert capsys.readouterr().out == "a: AssertionError\n"


def test_a_folder_that_cannot_be_written_is_said_in_one_line():
    with pytest.raises(InputError, match=r"cannot write /proc \(.*set UMAE_OUTPUTS, or TMPDIR"):
        run_jobs(halved, [(0,), (2,)], 2, names="ab", folder=Path("/proc"))


def test_a_process_that_is_killed_is_said_in_one_line():
    with pytest.raises(UMAEError, match=r"a process was killed.*lower jobs and run the same again"):
        run_jobs(die, [(0,), (1,)], 2, names="ab")


def test_the_processes_know_the_variables_of_now(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("UMAE_TEST", value)
        assert run_jobs(variable, [("UMAE_TEST",)] * 2, 2, names="ab") == [value, value]


def test_what_does_not_fit_into_memory_waits(monkeypatch):
    monkeypatch.setattr(jobs, "cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    free = type("Memory", (), {"available": 10 * 2**30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert plan_jobs("auto", 20, 0.5 * 2**30, "cpu") == jobs.Plan(8, 1)
    assert plan_jobs("auto", 3, 0.5 * 2**30, "cpu") == jobs.Plan(3, 2)
    plan = plan_jobs("auto", 20, 2.5 * 2**30, "cpu")
    assert (plan.at_once, plan.threads) == (3, 2)
    assert plan.reduced == (
        "jobs: 3 at once, not 8: each needs about 3.0 GiB, and 10.0 GiB are free"
    )
    assert plan_jobs("auto", 20, 100 * 2**30, "cpu").at_once == 1
    assert plan_jobs(1, 20, 100 * 2**30, "cpu") == plan_jobs("auto", 1) == jobs.Plan(1)


def test_work_that_is_shorter_than_the_start_of_processes_stays_here(monkeypatch):
    monkeypatch.setattr(jobs, "cores", lambda: 2)
    long, short = 2.1 * jobs.STARTING, 1.9 * jobs.STARTING
    assert plan_jobs("auto", 4, device="cpu", seconds=short) == jobs.Plan(1)
    assert plan_jobs("auto", 4, device="cpu", seconds=long).at_once == 2
    assert plan_jobs(2, 4, device="cpu", seconds=short).at_once == 2


INTERRUPTED = """
import sys
from lib.distributed.jobs import run_jobs
from lib.errors import Interrupted
from support.jobs import works_until_told
items = [(sys.argv[1], "a", True), (sys.argv[1], "b", False), (sys.argv[1], "c", True)]
try:
    run_jobs(works_until_told, items, 2, names="abc")
except Interrupted as error:
    print(error.number, error)
"""


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    "sent,group", [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)]
)
def test_an_interrupt_lets_jobs_save_and_leaves_no_process_behind(tmp_path, sent, group):
    """Ctrl-C in a terminal (the whole group), of a notebook's kernel, and a parent that is gone."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        env=environment(TMPDIR=str(tmp_path)), stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    until(lambda: (tmp_path / "a-begun").exists() and (tmp_path / "b-begun").exists())
    started = children(process.pid)
    (os.killpg if group else os.kill)(process.pid, sent)
    out = process.communicate(timeout=60)[0]
    if sent == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0, out
        assert out.splitlines()[-1].startswith(f"{sent.value} stopped; runs that had begun are ")
    until(lambda: (tmp_path / "a-saved").exists())
    assert not (tmp_path / "c-begun").exists() or sent == signal.SIGKILL
    until(lambda: not any(p.is_running() and p.status() != "zombie" for p in started))


IDLE = """
import os, signal
from lib.distributed.jobs import run_jobs
from support.jobs import halved
run_jobs(halved, [(2,), (4,)], 2, names="ab")
print("idle", flush=True)
signal.pause()
"""


def test_idle_processes_do_not_outlive_a_killed_parent():
    """As a kernel that papermill kills at the end of a notebook."""
    command = [sys.executable, "-c", IDLE]
    parent = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "idle\n"
    started = children(parent.pid)
    assert len(started) >= 2
    parent.kill()
    parent.communicate(timeout=30)  # returns when nobody holds the pipe any more
    until(lambda: not any(p.is_running() and p.status() != "zombie" for p in started), 30)


def test_a_named_gpu_is_one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(jobs, "pick_device", torch.device)
    monkeypatch.setattr(jobs, "cores", lambda: 8)
    free = type("Memory", (), {"available": 100 * 2**30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert plan_jobs("auto", 8, 1e6, "cuda").gpus == 4
    assert plan_jobs("auto", 8, 1e6, "cuda:1") == jobs.Plan(1)
    assert plan_jobs(2, 8, 1e6, "cuda:1").gpus == 1
