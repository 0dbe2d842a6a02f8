"""Streams from a folder: the pixels of one in memory, whatever decodes them, and how they end."""

import multiprocessing
import os
import shutil
import signal
import subprocess

import pytest
import torch
from support import folder_config, image_folder

from lib.data import load, notes, streaming
from lib.data.decoding import Decoder
from lib.data.streaming import decoded_batches
from lib.errors import InputError


def of_folder(root, **fields):
    return load(**folder_config(root, **fields).data_fields)


def pixels(data, split, crop_seed=None, chunks=5, workers=0):
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1)).split(chunks)
    return torch.cat(list(data.batches(split, list(order), crop_seed, workers)))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("size", [(20, 16), (300, 200)])
def test_a_streamed_folder_has_the_pixels_of_one_in_memory(tmp_path, suffix, size):
    root = image_folder(tmp_path, suffix=suffix, size=size)
    memory, stream = (of_folder(root, stream=way) for way in ("never", "always"))
    assert (memory.streamed, stream.streamed) == (False, True)
    for a, b in ((memory.train, stream.train), (memory.test, stream.test)):
        assert torch.equal(pixels(memory, a), pixels(stream, b)) and torch.equal(a.labels, b.labels)
    assert torch.equal(memory.mean, stream.mean) and torch.equal(memory.std, stream.std)
    assert torch.equal(memory.images(memory.test, [3, 1]), stream.images(stream.test, [3, 1]))


@pytest.mark.parametrize("crops", [False, True])
def test_the_number_of_workers_does_not_change_the_data(tmp_path, crops):
    data = of_folder(image_folder(tmp_path), stream="always")
    got = []
    for workers in (0, 1, 2):
        seeds = [(0, epoch) if crops else None for epoch in (0, 1)]
        got.append([pixels(data, data.train, seed, workers=workers) for seed in seeds])
        assert torch.equal(*got[-1]) != crops  # crops differ between epochs
        assert all(map(torch.equal, got[-1], got[0]))


def test_streamed_crops_depend_on_seed_epoch_and_image_not_on_the_batch(tmp_path):
    data = of_folder(image_folder(tmp_path), stream="always")
    first = pixels(data, data.train, (0, 0))
    assert torch.equal(first, pixels(data, data.train, (0, 0), chunks=2))
    assert not torch.equal(first, pixels(data, data.train, (1, 0)))
    assert not torch.equal(first, pixels(data, data.train, (0, 1)))


def test_an_image_that_breaks_while_it_streams_is_named_by_its_worker(tmp_path):
    root = image_folder(tmp_path / "images", suffix=".jpg", size=(64, 64))
    path = root / "train/cat/3.jpg"
    for workers in (0, 1):
        data = of_folder(root, stream="always")
        path.write_text("gone")
        with pytest.raises(InputError) as caught:
            list(data.batches(data.train, [torch.arange(12)], workers=workers))
        assert str(caught.value) == (
            f"cannot read the image {path} (UnidentifiedImageError); replace or remove it"
        )
        shutil.copy(root / "train/cat/2.jpg", path)


@pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal"
)
def test_a_worker_ends_when_its_parent_says_so_and_not_when_others_do(tmp_path):
    """Else a scheduler's SIGTERM to all processes cuts a step, or a worker outlives the run."""
    data = of_folder(image_folder(tmp_path, per_class=40), stream="always")
    order = list(torch.arange(80).split(4))
    others = set(multiprocessing.active_children())  # of other tests in this process
    stream = data.batches(data.train, order, workers=1)
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - others
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert len(list(stream)) == 19  # it went on to the end
    stream = data.batches(data.train, order, workers=1)
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - others
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


@pytest.mark.parametrize("crop_seed", [None, (0, 1)])
def test_with_little_shared_memory_the_same_batches_come_through_pipes(
    tmp_path, monkeypatch, crop_seed, capsys
):
    data = of_folder(image_folder(tmp_path), stream="always")
    usual = pixels(data, data.train, crop_seed, workers=1)
    free = shutil.disk_usage(tmp_path)._replace(free=2 * 5 * 3 * 8 * 8)  # not 3 batches of 5
    monkeypatch.setattr(streaming, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    real, ways = streaming.DataLoader, []

    def loader(*args, **options):
        ways.append(options["collate_fn"] is streaming._as_array)
        return real(*args, **options)

    monkeypatch.setattr(streaming, "DataLoader", loader)
    streaming._say_that_pipes_are_used.cache_clear(), notes.say_once.cache_clear()
    for _ in range(2):
        assert torch.equal(pixels(data, data.train, crop_seed, workers=1), usual)
    assert ways == [True, True]
    assert capsys.readouterr().out.count("go through pipes") == 1
    assert torch.equal(pixels(data, data.train, crop_seed, workers=0), usual)
    assert ways == [True, True, False]  # without workers there is nothing to hand over


def test_one_of_several_processes_says_it(monkeypatch, capsys):
    notes.say_once.cache_clear()
    monkeypatch.setenv("RANK", "1")
    notes.say_once("a line")
    notes.say_once.cache_clear()
    monkeypatch.setenv("RANK", "0")
    notes.say_once("a line"), notes.say_once("a line")
    assert capsys.readouterr().out == "a line\n"


class Dying(Decoder):
    def __getitems__(self, indices):
        os.kill(os.getpid(), signal.SIGBUS)  # what a write to a full /dev/shm does


class Full(Decoder):
    def __getitems__(self, indices):
        raise RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)")


@pytest.mark.parametrize("kind", [Dying, Full])
def test_workers_without_memory_end_in_one_line(tmp_path, kind):
    decoder = kind([tmp_path / "x.png"] * 4, 8, None)
    with pytest.raises(InputError) as caught:
        list(decoded_batches(decoder, [[0, 1], [2, 3]], 1))
    line = str(caught.value)
    assert line.startswith("the decoding workers ran out of memory (") and "\n" not in line
    assert "workers 0 (--workers 0)" in line


def test_other_errors_of_a_worker_stay_as_they_are(tmp_path):
    class Odd(Decoder):
        def __getitems__(self, indices):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(decoded_batches(Odd([tmp_path], 8, None), [[0]], 1))
