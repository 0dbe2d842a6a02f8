"""What a stranger's file could do, and does not: no code runs, no file leaves its folder."""

import ast
import json
import os
import pickle
import socket
import tempfile
from pathlib import Path

import pytest
import timm
from support import few, image_folder, run_of, small
from support.pickle_bomb import BOMB_MARK, PICKLE_BOMB

from lib.presets import REPO, resolve
from lib.train import train

SOURCES = {
    p.relative_to(REPO).as_posix(): p.read_text() for p in sorted((REPO / "lib").rglob("*.py"))
}
for notebook in sorted((REPO / "notebooks").glob("*.ipynb")):
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    code = "\n".join("".join(c["source"]) for c in cells)
    SOURCES[notebook.name] = "\n".join(
        "pass" if line.lstrip()[:1] in "%!" else line for line in code.split("\n")
    )

RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "joblib.load", "joblib.Memory"
}  # fmt: skip
REACHES_OUT = {"urllib", "requests", "http", "httpx", "ftplib", "smtplib", "huggingface_hub"}


def findings(source: str) -> list[str]:
    """What must not be in our code: each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name.split(".")[0] for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            if [a.name for a in node.names] == ["UnpicklingError"]:
                continue
            names = [(node.module or "").split(".")[0]]
        found += [f"{node.lineno}: imports {n}" for n in names if n in RUNS_CODE | REACHES_OUT]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in FORBIDDEN:
            found.append(f"{node.lineno}: {called}")
        if called == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        unsafe = {("weights_only", "False"), ("allow_pickle", "True"), ("shell", "True")}
        if unsafe & set(options.items()):
            found.append(f"{node.lineno}: {called} with {options}")
        local = "local-dir" in ast.unparse(node)
        if called.endswith("create_model") and options.get("pretrained") == "True" and not local:
            found.append(f"{node.lineno}: pretrained weights from the network")
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_our_code_neither_unpickles_nor_evaluates_nor_connects(name):
    assert findings(SOURCES[name]) == []


SUSPECTS = [
    "import pickle", "from urllib.request import urlopen", "eval(x)", "torch.load(p)",
    "np.load(p, allow_pickle=True)", "torch.load(p, weights_only=False)", "joblib.load(p)",
    "subprocess.run(c, shell=True)", "timm.create_model('x', pretrained=True)",
]  # fmt: skip


@pytest.mark.parametrize("source", SUSPECTS)
def test_the_check_sees_what_it_is_for(source):
    assert len(findings(source)) >= 1


def test_the_bomb_of_the_tests_is_live():
    """If anything unpickled the files of test_bad_input.py it would leave a mark: this does."""
    try:
        pickle.loads(PICKLE_BOMB)
        assert BOMB_MARK.exists()
    finally:
        BOMB_MARK.unlink(missing_ok=True)
    assert BOMB_MARK.parent == Path(tempfile.gettempdir())


def test_training_exporting_and_loading_connect_nowhere(monkeypatch):
    def refuse(*args, **_):
        pytest.fail(f"connects to {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run = train(small(), few(small()))
    run.load_model()
    timm.create_model(f"local-dir:{run.folder / 'encoder'}", pretrained=True)


def test_nothing_is_written_outside_the_output_folder(tmp_path, outputs):
    """Class and file names that point elsewhere; a data path that climbs."""
    root = image_folder(tmp_path / "images", classes=("..%2f..%2fevil", "a$(touch x)", "~root"))
    (root / "train" / "~root" / "0.png").rename(root / "train" / "~root" / "..png.png")
    config = resolve(
        data=f"folder:{tmp_path}/images/../images", embed_dim=16, depth=1, num_heads=2,
        decoder_dim=16, decoder_heads=2, batch_size=4, epochs=1, device="cpu",
    )  # fmt: skip
    before = {p for p in tmp_path.rglob("*") if outputs not in p.parents and p != outputs}
    here = set(os.listdir("."))
    run = train(config)
    assert run.folder.parent == outputs.resolve() / "runs" and run.result
    assert {p for p in tmp_path.rglob("*") if outputs not in p.parents and p != outputs} == before
    assert set(os.listdir(".")) == here


def test_a_link_in_place_of_a_file_is_replaced_not_followed(tmp_path):
    """Files are renamed over a link: what it points to stays as it is."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = run_of(small())
    run.folder.mkdir(parents=True)
    (run.folder / "model.safetensors").symlink_to(victim)
    train(small(), few(small()))
    assert victim.read_text() == "mine" and not (run.folder / "model.safetensors").is_symlink()
