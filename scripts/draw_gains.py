"""`python scripts/draw_gains.py`: the README's figure, from the kept numbers of notebook 03."""

import json

from lib.notebook import plots
from lib.notebook.statistics import OPEN, verdict
from lib.presets import REPO

REFERENCE = REPO / "outputs" / "reference"


def main() -> None:
    table = json.loads((REFERENCE / "03_linear_probe_cifar10.json").read_text())["table"]
    gains = {(row["protocol"], row["pool"]): row["gain"] for row in table}
    plots.style()
    figure = plots.draw_gains(gains, {key: verdict(gain) != OPEN for key, gain in gains.items()})
    figure.savefig(REFERENCE / "gain_by_protocol.png", bbox_inches="tight")


if __name__ == "__main__":
    main()
