"""The command line: help for every setting, from the presets, and the values of the Tab key."""

import os
import re
import subprocess
import sys

import pytest

from lib.errors import InputError
from lib.presets import DEFAULT_PRESET, PRESETS, Config, help_of, resolve
from lib.train.arguments import FIELDS, parser, read_arguments


def helped(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        read_arguments([*argv, "--help"])
    assert ended.value.code == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("preset", [DEFAULT_PRESET, "imagenet100-vit-base"])
def test_every_option_has_a_sentence_its_range_and_the_presets_default(capsys, preset):
    printed = helped(capsys, "--preset", preset)
    for name, field in FIELDS.items():
        text = help_of(name)
        assert f"{text[0].upper()}{text[1:]}. Default: " in printed
        assert f"--{name.replace('_', '-')} " in printed
        assert f"{field.metadata['group']}:" in printed
    assert f"at least 1. Default: {PRESETS[preset].image_size}. " in printed


def test_the_range_that_is_said_is_the_range_that_is_checked():
    for name, field in FIELDS.items():
        low, below = field.metadata.get("low"), field.metadata.get("below")
        if low is not None:
            with pytest.raises(InputError, match=name):
                resolve(**{name: low - 1})
            assert f"at least {low}" in help_of(name)
        if below is not None:
            with pytest.raises(InputError, match=name):
                resolve(**{name: below})
        for choice in field.metadata.get("choices", ()):
            assert choice in help_of(name) and resolve(data="cifar10", **{name: choice})


def test_no_option_at_all_is_the_default_preset():
    assert read_arguments([]) == resolve(DEFAULT_PRESET)


def test_both_spellings_and_an_equals_sign():
    config = read_arguments(
        ["--mask_ratio=0.5", "--decoder-dim", "16", "--data_dir", "/a_b", "--data=cifar10"]
    )
    assert (config.mask_ratio, config.decoder_dim, config.data_dir) == (0.5, 16, "/a_b")


def test_every_field_has_an_option_of_its_own():
    options = {a.dest for a in parser()._actions} - {"help"}
    assert options == set(Config.__dataclass_fields__)


def test_the_tab_key(tmp_path):
    """argcomplete's protocol, without a shell: it asks the program, which writes to a file."""
    typed = "python -m lib.train --uniformity "
    asked = {"_ARGCOMPLETE": "3", "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    asked |= {"_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_IFS": " "}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words")}
    command = [sys.executable, "-m", "lib.train"]
    subprocess.run(command, env={**os.environ, **asked}, check=True, timeout=120)
    assert (tmp_path / "words").read_text().split() == ["spectral", "released", "euclidean"]
