"""Streams from a folder: the pixels of one in memory, whatever decodes them, and how they end."""

import multiprocessing
import shutil
import signal
import subprocess

import pytest
import torch
from support import folder_config, image_folder

from lib.data import load
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
    stream = data.batches(data.train, order, workers=1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert len(list(stream)) == 19  # it went on to the end
    stream = data.batches(data.train, order, workers=1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0
