"""The README: short, and its example runs."""

import re

import torch

from lib.presets import REPO

TEXT = (REPO / "README.md").read_text()


def test_the_readme_is_a_front_page():
    assert len(TEXT.split()) <= 900


def test_the_example_takes_one_step_of_the_umae_loss():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    torch.manual_seed(0)
    exec(code, names)
    model, loss = names["model"], names["loss"]
    assert loss.isfinite() and loss > 0.5
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
