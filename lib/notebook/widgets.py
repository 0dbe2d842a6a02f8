"""Figures with sliders: live in JupyterLab, and the same figure at fixed settings elsewhere.

Papermill, GitHub, the site and a printer have no kernel that could answer a slider. There a reader
sees the figure at the settings that the notebook names.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from lib.notebook.plots import save
from lib.runs.progress import is_live

Draw = Callable[..., Figure]


def explore(
    draw: Draw,
    controls: Mapping[str, Sequence[Any]],
    still: Sequence[Mapping[str, Any]],
    folder: Path,
    name: str,
) -> None:
    """Shows draw(**values) with a slider for every control, or at the settings of `still`.

    controls: {parameter of draw: the values it can take}. still: at least one setting of all
    parameters; the first is where the sliders begin. Each still figure is written to `folder` in
    either case, as name.png, name_1.png and so on.
    """
    for k, values in enumerate(still):
        figure = draw(**values)
        save(figure, folder, f"{name}_{k}" if k else name)
        if not is_live():
            plt.show()
        plt.close(figure)
    if is_live():
        _show(draw, controls, still[0])


def sliders(
    controls: Mapping[str, Sequence[Any]], start: Mapping[str, Any]
) -> dict[str, ipywidgets.SelectionSlider]:
    """One slider for each control. A start that is not among the values is taken to them."""
    made = {}
    for name, values in controls.items():
        known = list(values) if start[name] in values else sorted([*values, start[name]])
        options = [
            (f"{value:.3g}" if isinstance(value, float) else str(value), value) for value in known
        ]
        made[name] = ipywidgets.SelectionSlider(
            options=options,
            value=start[name],
            description=name.replace("_", " "),
            continuous_update=False,
            style={"description_width": "initial"},
        )
    return made


def _show(draw: Draw, controls: Mapping[str, Sequence[Any]], start: Mapping[str, Any]) -> None:
    made = sliders(controls, start)
    picture = ipywidgets.HTML()

    def redraw(_: Any = None) -> None:
        values = {name: slider.value for name, slider in made.items()}
        picture.value = _image(draw(**values), values)

    redraw()
    for slider in made.values():
        slider.observe(redraw, "value")
    box = ipywidgets.VBox([*made.values(), picture])
    bundle = box._repr_mimebundle_()
    # A page without this kernel, such as the saved notebook on GitHub, shows the picture alone.
    display({**bundle, "image/png": _png(draw(**start))}, raw=True)


def _png(figure: Figure) -> str:
    """The figure as base64 text of a PNG; closes it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", dpi="figure")
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def _image(figure: Figure, values: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name} {value}" for name, value in values.items())
    style = "max-width: 100%"
    return (
        f'<img alt="Figure at {shown}" style="{style}" src="data:image/png;base64,{_png(figure)}">'
    )
