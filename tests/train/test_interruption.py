"""Killed at any moment, two at once, a full disk, a vanished folder: nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import at_step, cli_args, content, environment, few, run_in, run_of, small
from support.killer import (
    STAGES,
    Killer,
    check_visible_files,
    kill_at_random,
    kill_everywhere,
    leak,
    writes_of,
)

from lib.errors import InputError
from lib.runs.files import load_state
from lib.train import train
from lib.train.arguments import main
from scripts.forked import Forked


def test_killed_at_every_file_written(killer, tmp_path):
    fields = {"snapshots": 1}
    number = writes_of(killer, tmp_path, fields)
    assert number >= 12
    kill_everywhere(killer, tmp_path, fields, [(n, STAGES[n % 3]) for n in range(1, number + 1)])


def test_killed_at_random_moments(killer, tmp_path):
    fields = {"epochs": 12, "accum_steps": 2, "snapshots": 3}
    assert kill_at_random(killer, tmp_path, fields, seed=0, most=8) >= 1


def test_a_full_disk_stops_with_one_line_and_leaves_the_checkpoint(killer, tmp_path):
    fields = {"epochs": 3}
    number = writes_of(killer, tmp_path, fields)
    config = small(**fields)
    outputs = tmp_path / "full"
    assert killer(outputs, fields, call=number - 6, stage="written")["status"] == -signal.SIGKILL
    run = run_in(outputs, config)
    before = (run.folder / "state.pt").read_bytes()
    answer = killer(outputs, fields, limit=len(before) // 2)
    assert answer["status"] == 2
    assert answer["error"].startswith(f"cannot write {run.folder}/")
    assert answer["error"].endswith(
        " (File too large); earlier files are intact: free the disk or set UMAE_OUTPUTS to a "
        "folder that can be written, then run again to resume"
    )
    assert (run.folder / "state.pt").read_bytes() == before and not list(run.folder.rglob(".*"))
    check_visible_files(run)
    assert killer(outputs, fields)["status"] == 0
    assert content(run) == content(run_in(tmp_path / "count", config))


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_folder_that_vanishes_stops_the_run_and_is_not_made_again(
    monkeypatch, tmp_path, outputs, how
):
    config = small()

    def vanish():
        if how == "deleted":
            shutil.rmtree(outputs)
        else:
            outputs.rename(tmp_path / "elsewhere")
        if how == "replaced":  # another process has started the run anew in its place
            run_of(config).folder.mkdir(parents=True)
            (run_of(config).folder / "lock").touch()

    at_step(monkeypatch, 4, vanish)
    with pytest.raises(
        InputError,
        match="was moved or deleted while it was being trained; run again to start it anew",
    ):
        train(config, few(config))
    assert sorted(p.name for p in outputs.rglob("*") if p.is_file()) == (
        ["lock"] if how == "replaced" else []
    )
    if how == "moved":
        check_visible_files(run_in(tmp_path / "elsewhere", config))


def start(args: list[str], errors: Path) -> subprocess.Popen:
    """`python -m lib.train ARGS`; what it says of errors is written to a file."""
    command = [sys.executable, "-m", "lib.train", *args]
    with errors.open("w") as file:
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, env=environment(), cwd="/"
        )


def start_forked(args: list[str], errors: Path) -> Forked:
    """The same without its imports."""
    return Forked(main, args, stderr_to=errors)


def wait_for(condition, process, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.poll()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_signals_save_and_say_how_to_go_on_and_a_second_process_is_told_who_trains(
    tmp_path, monkeypatch, capfd
):
    """Two real processes; SIGTERM and SIGINT as a scheduler and a user send them; then the rest."""
    fields = {"epochs": 30, "batch_size": 128, "eval_every": 2, "checkpoint_every": 7}
    config = small(**fields)
    run = run_of(config)

    def measured(n):
        return lambda: len(run.metrics()) >= n

    for number, n, begin in ((signal.SIGTERM, 2, start), (signal.SIGINT, 5, start_forked)):
        errors = tmp_path / number.name
        process = begin(cli_args(**fields), errors)
        wait_for(measured(n), process)
        with pytest.raises(SystemExit) as ended:
            main(cli_args(**fields))
        assert ended.value.code == 2
        told = capfd.readouterr().err
        assert (
            f"error: run {run.folder.name} is being trained by " in told
            and f", pid {process.pid}, since 2" in told
        )
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        step = load_state(run.folder / "state.pt")["position"]["step"]
        how = f"stopped at step {step}, saved; the same command resumes {run.folder.name}"
        assert errors.read_text() == f"error: {how}\n"
        check = [m["epoch"] for m in run.metrics()]
        assert check == list(range(2, 2 * len(check) + 1, 2))
    main(cli_args(**fields))
    assert f"resuming at step {step} {run.folder.name} on cpu\n" in capfd.readouterr().out
    interrupted = content(run)
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path / "whole"))
    assert content(train(config)) == interrupted


def test_different_configs_at_once_do_not_touch_each_other(killer, tmp_path, monkeypatch):
    """Two processes into one outputs folder; each run equals the one made alone."""
    fields = [{"seed": 1, "epochs": 4}, {"seed": 2, "epochs": 4}]
    other = Killer()
    shared = tmp_path / "shared"
    killer.begin(shared, fields[0])
    other.begin(shared, fields[1])
    assert [process.answer()["status"] for process in (killer, other)] == [0, 0]
    other.end()
    for own in fields:
        alone = train(small(**own), few(small(**own)))
        assert content(run_in(shared, small(**own))) == content(alone)
    assert len(os.listdir(shared / "runs")) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_short_runs_leave_no_open_file_and_no_memory():
    files, memory = leak(number=25, warm=10)
    assert files == 0 and memory < 20
