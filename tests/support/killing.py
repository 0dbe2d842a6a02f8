"""A process that trains in forked children and kills them: one import of torch for many kills.

A job is a dict: {"outputs", "fields" of the small config, and one of
  "call": n, "stage": "half" | "written" | "renamed"
      SIGKILL at the n-th file written: in the middle of its bytes, before its rename, or after it
  "after": seconds
      SIGKILL then, wherever it is
  "limit": bytes
      no file may grow beyond that (a full disk)}
The answer is {"status": exit status, negative for a signal, "writes": files written,
"error": the InputError}.
"""

import io
import json
import os
import resource
import signal
import tempfile
import threading
from contextlib import redirect_stdout, suppress
from multiprocessing.connection import Connection

from tqdm import tqdm

import lib.runs.files
from lib.errors import InputError
from lib.train import train
from support import few, folder_config, small

real_replace, real_open = os.replace, open
writes = 0


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(call: int | None, stage: str) -> None:
    def replace(source, target):
        global writes
        writes += 1
        if stage == "written" and writes == call:
            kill()
        real_replace(source, target)
        if stage == "renamed" and writes == call:
            kill()

    class Half:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            kill()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    def half_open(path, mode="r", *more, **fields):
        file = real_open(path, mode, *more, **fields)
        return Half(file) if mode == "wb" and stage == "half" and writes + 1 == call else file

    os.replace = replace
    lib.runs.files.open = half_open  # type: ignore[attr-defined]


def child(job: dict, answer: int) -> None:
    os.environ["UMAE_OUTPUTS"] = job["outputs"]
    # tqdm's own lock is shared by forked processes: one killed while it holds it stops all.
    tqdm.set_lock(threading.RLock())
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    arm(job.get("call"), job.get("stage", ""))
    if job.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    status, error = 0, ""
    try:
        fields = dict(job["fields"])
        root = fields.pop("root", None)
        config = folder_config(root, **fields) if root else small(**fields)
        train(config, None if root else few(config))
    except InputError as caught:
        status, error = 2, str(caught)
    os.write(answer, json.dumps({"writes": writes, "error": error}).encode())
    os._exit(status)


def serve(jobs: Connection) -> None:
    """Answers one job after another, until the other end is closed."""
    # All that torch imports at its first step is imported once, here.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UMAE_OUTPUTS"] = folder
        with redirect_stdout(io.StringIO()):
            train(small(epochs=1), few(small()))
    with suppress(EOFError):
        while True:
            jobs.send(answer_to(jobs.recv()))


def answer_to(job: dict) -> dict:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(job, write)
    os.close(write)
    if "after" in job:
        timer = threading.Timer(job["after"], lambda: os.kill(pid, signal.SIGKILL))
        timer.start()
    told = b""
    while part := os.read(read, 65536):
        told += part
    os.close(read)
    if "after" in job:
        timer.cancel()  # nobody has waited for the process yet: its number is its own
        timer.join()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"status": status, **json.loads(told or b"{}")}
