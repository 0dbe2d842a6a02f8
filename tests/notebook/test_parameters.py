"""The parameters of a notebook: read, checked, converted."""

import pytest

from lib.errors import InputError
from lib.notebook.parameters import read_parameters

CELL = """# parameters
preset: str = 'digits-vit-nano'  # help
lam: float = 0.01
seeds: list = [0]
pool: str | None = None"""


def test_parameters_of_a_notebook():
    values = {"preset": "x", "lam": 1, "seeds": [1, 2], "pool": None, "other": 3}
    got = read_parameters(
        ["", CELL, "# Parameters\nlam = 1\nseeds = [1, 2]\n", "import torch"], values
    )
    assert got == {"preset": "x", "lam": 1.0, "seeds": [1, 2], "pool": None}


@pytest.mark.parametrize(
    "injected,values,message",
    [
        ("lamda = 1", {}, "unknown parameter 'lamda': did you mean 'lam'?"),
        ("zzz = 1", {}, "unknown parameter 'zzz': known: preset, lam, seeds, pool"),
        ("lam = 'a'", {"lam": "a"}, "lam must be float, got the str 'a'"),
        ("lam = True", {"lam": True}, "lam must be float, got the bool True"),
        ("seeds = 3", {"seeds": 3}, "seeds must be list, got the int 3"),
        ("pool = 3", {"pool": 3}, "pool must be None or str, got the int 3"),
    ],
)
def test_bad_parameters_of_a_notebook(injected, values, message):
    good = {"preset": "x", "lam": 0.1, "seeds": [0], "pool": None}
    with pytest.raises(InputError) as caught:
        read_parameters([CELL, f"# Parameters\n{injected}"], {**good, **values})
    assert str(caught.value) == message
