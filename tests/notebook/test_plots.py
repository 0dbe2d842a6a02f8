"""Figures: nobody needs colours alone to tell two things apart."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lib.notebook import plots
from lib.notebook.statistics import interval

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
SIGHT = {
    "all colours": np.eye(3),
    "no red cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue cones": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    "no colours": [[0.213, 0.715, 0.072]] * 3,
}
TO_XYZ = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
WHITE = [0.9505, 1.0, 1.0888]
ALIKE = 20  # of two patches of CIE L*a*b*; 100 lie between black and white


def lab(colour, sight) -> np.ndarray:
    """L*, a*, b* of a colour as somebody sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(sight @ linear, 0, 1) / WHITE)  # no colour here is as dark
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def alike(one, other, sight) -> bool:
    return float(np.linalg.norm(lab(one, sight) - lab(other, sight))) < ALIKE


@pytest.mark.parametrize("sight", SIGHT)
def test_two_classes_with_colours_that_look_alike_have_different_markers(sight):
    assert len(plots.CLASS_LOOKS) == 10
    for one, other in itertools.combinations(plots.CLASS_LOOKS, 2):
        if alike(one["color"], other["color"], np.array(SIGHT[sight])):
            assert one["marker"] != other["marker"]


def test_the_test_sees_what_a_colour_blind_person_sees():
    """Orange and green: the reason why the objectives differ by their markers as well."""
    orange, green = plots.COLOURS["U-MAE"], plots.COLOURS["scratch"]
    assert alike(orange, green, np.array(SIGHT["no red cones"]))
    assert not alike(orange, green, np.array(SIGHT["all colours"]))


@pytest.mark.parametrize(
    "colours, markers",
    [
        (plots.COLOURS, plots.MARKERS),
        (plots.PROTOCOL_COLOURS, plots.PROTOCOL_MARKERS),
    ],
)
def test_objectives_and_protocols_each_have_a_marker_of_their_own(colours, markers):
    assert list(colours) == list(markers)
    assert len(set(markers.values())) == len(markers)


def test_no_colour_means_two_things():
    groups = [plots.COLOURS, plots.DATA, plots.PROTOCOL_COLOURS]
    used = [to_rgb(c) for group in groups for c in group.values()]
    used += [to_rgb(c) for c in plots.CYCLE]
    assert len(set(used)) == len(used)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_axes_hold_every_interval_of_three_seeds_or_more(seeds):
    """An interval of two seeds is too long to be shown whole; a longer one is never cut."""
    values = list(np.linspace(10, 11, seeds))
    figure, ax = plt.subplots()
    plots.draw_seeds(ax, [0, 1], [values, values], "b")
    low, high = interval(values)
    bottom, top = ax.get_ylim()
    assert (bottom < low and high < top) == (seeds > 2)
    assert bottom < 10 and top > 11
    plt.close(figure)


def test_names_of_classes_are_drawn_as_they_are():
    figure, ax = plt.subplots()
    for name in ("_back", "$10_$20", "cat"):
        ax.plot([], [], label=plots.as_text(name))
    texts = [text.get_text().strip() for text in ax.legend().get_texts()]
    assert texts == ["_back", r"\$10_\$20", "cat"]
    figure.canvas.draw()  # raises for half a formula
    plt.close(figure)
