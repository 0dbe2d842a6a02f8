"""Figures with sliders: live they answer, elsewhere they are figures of the same content."""

import base64
import io

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from lib.notebook import widgets

CONTROLS = {"ratio": [0.25, 0.5, 0.75], "seed": range(3)}
STILL = [{"ratio": 0.5, "seed": 0}, {"ratio": 0.75, "seed": 2}]


def bar(ratio: float, seed: int) -> plt.Figure:
    figure, ax = plt.subplots(figsize=(2, 2))
    ax.bar([0, 1], [ratio, seed])
    return figure


def pixels_of(html: str) -> np.ndarray:
    encoded = html.split("base64,")[1].split('"')[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


@pytest.fixture
def shown(monkeypatch):
    """What was displayed as a bundle, and how often a figure was shown."""
    kept: dict = {"bundles": [], "figures": 0}
    monkeypatch.setattr(widgets, "display", lambda b, raw: kept["bundles"].append(b))
    monkeypatch.setattr(plt, "show", lambda: kept.update(figures=kept["figures"] + 1))
    return kept


def test_without_a_page_the_figure_is_shown_at_every_still_setting(shown, tmp_path, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    widgets.explore(bar, CONTROLS, STILL, tmp_path, "bar")
    assert shown == {"bundles": [], "figures": 2} and plt.get_fignums() == []
    assert {path.name for path in tmp_path.glob("*.png")} == {"bar.png", "bar_1.png"}


def test_live_a_slider_changes_the_picture_and_the_saved_page_keeps_one(
    shown, tmp_path, monkeypatch
):
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    made: list = []
    vbox = ipywidgets.VBox
    monkeypatch.setattr(
        ipywidgets, "VBox", lambda children: made.extend(children) or vbox(children)
    )
    widgets.explore(bar, CONTROLS, STILL, tmp_path, "bar")
    ratio, seed, picture = made
    before = pixels_of(picture.value)
    assert 'alt="Figure at ratio 0.5, seed 0"' in picture.value and ratio.value == 0.5
    ratio.value = 0.75
    assert 'alt="Figure at ratio 0.75, seed 0"' in picture.value
    assert (pixels_of(picture.value) != before).any()
    seed.value = 2
    assert "seed 2" in picture.value
    (bundle,) = shown["bundles"]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.glob("*.png")} == {"bar.png", "bar_1.png"}
    assert plt.get_fignums() == []


def test_a_slider_can_begin_between_its_values():
    slider = widgets.sliders({"ratio": [0.25, 0.75]}, {"ratio": 0.6})["ratio"]
    assert slider.value == 0.6
    assert [value for _, value in slider.options] == [0.25, 0.6, 0.75]
