"""Run folders: names, atomic files, digests, locks."""

import dataclasses
import json
import os
import runpy
import socket
import stat
import subprocess
import sys

import pytest
import torch
from support import environment, small

from lib.errors import InputError, RunBusy
from lib.models import MAE
from lib.presets import resolve
from lib.runs import open_run
from lib.runs.files import (
    load_into,
    load_state,
    load_weights,
    save_state,
    save_weights,
    write_atomic,
)
from lib.runs.folder import run_name


def test_names_say_what_differs_from_the_preset():
    assert run_name(resolve(lam=0.01, seed=3), "f").startswith("digits-vit-nano-lam0.01-seed3-")
    assert run_name(resolve(), "f").startswith("digits-vit-nano-seed0-")
    assert run_name(resolve(epochs=12), "f").startswith("digits-vit-nano-epochs12-seed0-")


ODD_TEXT = [
    "../../../etc/passwd", "/", "..", "a/../../b", "x\ny", "\udcff", "é" * 300, "~root", "$HOME"
]  # fmt: skip
LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@pytest.mark.parametrize("text", ODD_TEXT)
def test_no_config_and_no_fingerprint_leaves_the_output_folder(outputs, text):
    """Free text is in the fields of the data, which are no part of a name, and in no other."""
    plain = open_run(resolve(), "f").folder
    for config in (resolve(data=f"folder:{text}"), resolve(classes=("../..", text))):
        assert open_run(config, "f").folder == plain
    other = open_run(resolve(), text).folder
    assert other != plain and other.parent == plain.parent == outputs.resolve() / "runs"
    assert set(other.name) <= LETTERS


def test_a_run_is_named_by_its_settings_and_the_content_of_its_images():
    settings = [resolve(lam=lam, seed=s) for lam in (0, 1e-3, 0.1) for s in (0, 1)]
    assert len({open_run(c, f).folder for c in settings for f in ("a", "b")}) == 12
    here, there = resolve(data="folder:/here"), resolve(data="folder:/there/images", workers=7)
    assert open_run(here, "a").folder == open_run(there, "a").folder


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    for content in (b"one", b"two"):
        write_atomic(tmp_path / "sub" / "file", content)
        assert (tmp_path / "sub" / "file").read_bytes() == content
    assert os.listdir(tmp_path / "sub") == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_new_one(tmp_path, monkeypatch):
    write_atomic(tmp_path / "file", b"old")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(
                os, call, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
            with pytest.raises(
                InputError,
                match=r"cannot write .*file \(No space left on device\); earlier files are intact",
            ):
                write_atomic(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_write_atomic_syncs_the_file_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    real = os.fsync, os.replace
    kind = {True: "folder", False: "file"}
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (calls.append(kind[stat.S_ISDIR(os.fstat(fd).st_mode)]), real[0](fd)),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), real[1](a, b)))
    write_atomic(tmp_path / "file", b"x")
    assert calls == ["file", "rename", "folder"]


def test_weights_round_trip_bit_for_bit(tmp_path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.tensor(1, dtype=torch.int64),
        "c": torch.randn(4, 2).T,
        "d": torch.zeros(0),
    }
    tensors["e"] = torch.randn(5, dtype=torch.float64)
    tensors["f"] = torch.randn(5).bfloat16()
    save_weights(tmp_path / "w.safetensors", tensors)
    back = load_weights(tmp_path / "w.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[k], tensors[k]) for k in tensors)


def test_files_of_two_processes_do_not_meet_and_those_of_the_dead_are_swept(tmp_path):
    run = open_run(small(), "f")
    dead = subprocess.Popen(["true"])
    dead.wait()
    (run.folder / "snapshots").mkdir(parents=True)
    here = socket.gethostname()
    stale = [
        run.folder / f".state.pt.{here}.{dead.pid}.tmp",
        run.folder / f"snapshots/.a.safetensors.{here}.{dead.pid}.tmp",
    ]
    living = run.folder / f".probe.json.{here}.{os.getppid()}.tmp"
    elsewhere = run.folder / f".state.pt.another-{here}.{dead.pid}.tmp"
    for path in (*stale, living, elsewhere):
        path.write_text("half")
    with run.lock():
        assert living.exists() and elsewhere.exists() and not any(p.exists() for p in stale)


def test_every_flipped_byte_of_weights_is_noticed(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.randn(3), "b": torch.randn(2)})
    content = path.read_bytes()
    undetected = []
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x10]) + content[i + 1 :])
        try:
            load_weights(path)
            undetected.append(i)
        except InputError:
            pass
    assert undetected == []


def test_state_round_trips_and_every_truncation_is_noticed(tmp_path):
    state = {
        "step": 3,
        "t": torch.randn(4),
        "o": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{"lr": 0.1}]},
    }
    save_state(tmp_path / "s.pt", state)
    back = load_state(tmp_path / "s.pt")
    assert (
        back["step"] == 3
        and torch.equal(back["t"], state["t"])
        and back["o"]["groups"] == [{"lr": 0.1}]
    )
    content = (tmp_path / "s.pt").read_bytes()
    for cut in (0, 10, 64, 65, len(content) // 2, len(content) - 1):
        (tmp_path / "s.pt").write_bytes(content[:cut])
        with pytest.raises(InputError, match="truncated or altered"):
            load_state(tmp_path / "s.pt")


def test_load_into_names_the_first_difference(tmp_path):
    state = MAE(small(embed_dim=32)).state_dict()
    with pytest.raises(
        InputError,
        match=r"of another architecture: decoder_embed.weight is \(16, 32\), expected \(16, 16\)",
    ):
        load_into(MAE(small()), state, tmp_path)
    state = MAE(small()).state_dict()
    del state["encoder.norm.bias"]
    with pytest.raises(InputError, match=r"encoder\.norm\.bias is nothing, expected"):
        load_into(MAE(small()), state, tmp_path)


def test_metrics_do_not_count_a_line_cut_short():
    run = open_run(small(), "f")
    assert run.metrics() == [] and run.result is None and run.record == {}
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert run.metrics() == [{"epoch": 1}, {"epoch": 2}]


def test_the_record_says_which_code_machine_and_data():
    run = open_run(small(), "f")
    run.write_record(processes=1)
    assert run.record["config"] == json.loads(json.dumps(dataclasses.asdict(run.config)))
    origin = {"commit", "time", "torch", "timm", "device", "cpus", "threads", "command"}
    assert origin <= run.record.keys()
    assert run.record["fingerprint"] == "f"
    run.check_data("f")
    with pytest.raises(InputError, match=r"was trained on other images \(f, these are xyz\)"):
        run.check_data("xyz")


@pytest.mark.parametrize("run", [runpy.run_module, runpy.run_path])
def test_the_command_can_be_typed_again(run, tmp_path, monkeypatch):
    (tmp_path / "tool").mkdir()
    file = tmp_path / "tool" / "__main__.py"
    file.write_text("from lib.runs.provenance import command\nfound = command()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest", "--data", "a b"])
    if run is runpy.run_module:
        found = run("tool", run_name="__main__", alter_sys=True)["found"]
        assert found == "python -m tool --data 'a b'"
    else:
        assert run(str(file), run_name="__main__")["found"] == "__main__.py --data 'a b'"


HOLD = """
import sys
from support import small
from lib.runs import open_run
with open_run(small(), "f").lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def holder():
    env = environment()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_held_by_another_process_says_by_whom_and_is_freed_by_its_death():
    run = open_run(small(), "f")
    process = holder()
    message = (
        rf"is being trained by \S+, pid {process.pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d; wait"
    )
    with pytest.raises(RunBusy, match=message), run.lock():
        pass
    with open_run(small(seed=1), "f").lock():  # another config is free
        pass
    process.kill()
    process.wait()
    assert str(process.pid) in (run.folder / "lock").read_text()  # stale, and taken over
    with run.lock():
        assert f"pid {os.getpid()}," in (run.folder / "lock").read_text()
        with pytest.raises(RunBusy, match=f"pid {os.getpid()},"), run.lock():
            pass
    with run.lock():
        pass


def test_a_forked_child_does_not_keep_the_lock():
    run = open_run(small(), "f")
    to_child, to_parent = os.pipe(), os.pipe()
    with run.lock():
        child = os.fork()
        if child == 0:  # like a worker that outlives its killed parent
            os.close(to_child[1])
            os.write(to_parent[1], b"x")
            os.read(to_child[0], 1)
            os._exit(0)
        os.read(to_parent[0], 1)
        with (
            pytest.raises(RunBusy),
            run.lock(),
        ):  # the child lets go of its copy, the parent keeps the lock
            pass
    try:
        with run.lock():
            pass
    finally:
        os.close(to_child[1])
        os.waitpid(child, 0)
