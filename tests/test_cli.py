"""The command line: one line per error, exit codes, help."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import symerge_jax
from symerge_jax import cli
from symerge_jax.cli.errors import parse, run
from symerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Settings:
    """Bakes a cake."""

    flour_grams: float = 250.0
    """Flour, in grams."""
    layers: tuple[int, ...] = (1,)
    """Heights of the layers, in cm."""
    icing: Literal["none", "sugar"] = "none"
    """What goes on top."""
    vegan: bool = False
    """Whether eggs are left out."""


def bake(*words, main=lambda settings: None):
    return run(main, Settings, words, prog="cake")


def error_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("symerge: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_settings_reach_main():
    seen = []
    assert bake("--flour-grams", "300", "--layers", "2", "3", "--vegan", main=seen.append) == 0
    assert seen == [Settings(flour_grams=300.0, layers=(2, 3), vegan=True)]


@pytest.mark.parametrize("option", ["--flour_grams=7", "--flour-grams=7"])
def test_hyphens_and_underscores_are_interchangeable(option):
    seen = []
    bake(option, main=seen.append)
    assert seen[0].flour_grams == 7


def test_values_keep_their_underscores():
    with pytest.raises(BadInput, match="a_b"):
        parse(Settings, ["--icing=a_b"], prog="cake")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("--flour-gram", "1"), "--flour-grams"),
        (("--icng=sugar",), "--icing"),
        (("--layer", "1", "--vegan"), "--layers"),
        (("--vegn",), "--vegan"),
        (("--icing", "sugar", "--flour_gramms", "1"), "--flour-grams"),
    ],
)
def test_an_unknown_option_names_the_nearest(words, nearest, capsys):
    assert bake(*words) == 2
    assert f"(did you mean {nearest}?)" in error_line(capsys)


def test_an_option_like_no_other_is_named_alone(capsys):
    assert bake("--qqq") == 2
    line = error_line(capsys)
    assert "--qqq" in line
    assert "did you mean" not in line


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--flour-grams", "plenty"), "plenty"),
        (("--icing", "salt"), "sugar"),
        (("--flour-grams",), "--flour-grams"),
        (("oven",), "oven"),
    ],
)
@pytest.mark.parametrize("colours", ["0", "1"])
def test_a_bad_value_is_one_line(words, found, colours, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", colours)
    assert bake(*words) == 2
    line = error_line(capsys)
    assert found in line
    assert "\x1b" not in line
    assert "see `cake --help`" in line


def test_help_shows_defaults_and_units(capsys):
    assert bake("--help") == 0
    text = capsys.readouterr().out
    for expected in ("Bakes a cake.", "in grams", "250", "--debug", "--version"):
        assert expected in text


def raising(error):
    def main(settings):
        raise error

    return main


def test_bad_input_is_one_line_and_code_2(capsys):
    assert bake(main=raising(BadInput("eggs.txt: expected eggs,\nfound none"))) == 2
    assert error_line(capsys) == "symerge: error: eggs.txt: expected eggs, found none\n"


def test_a_missing_file_is_bad_input(capsys):
    assert bake(main=lambda settings: Path("no/such/file").read_text()) == 2
    assert "no/such/file" in error_line(capsys)


def test_a_defect_is_one_line_and_code_1(capsys):
    assert bake(main=raising(ZeroDivisionError("oven"))) == 1
    assert "ZeroDivisionError" in error_line(capsys)


def test_debug_shows_the_traceback(capsys):
    assert bake("--debug", main=raising(BadInput("no eggs"))) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_code_130(capsys):
    assert bake(main=raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "symerge: interrupted\n"


def test_a_failed_check_is_code_1():
    assert bake(main=lambda settings: 1) == 1


@pytest.mark.parametrize("words", [["--version"], ["methods", "--version"]])
def test_version(words, capsys):
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"symerge {symerge_jax.__version__}\n"


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_every_command(words, capsys):
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in cli.COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["metods"]) == 2
    assert "did you mean methods?" in error_line(capsys)


def test_an_unknown_option_before_a_command(capsys):
    assert cli.main(["--verbose"]) == 2
    assert "--verbose" in error_line(capsys)


def test_methods_lists_every_method(capsys):
    assert cli.main(["methods"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in symerge_jax.METHODS)


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "symerge_jax", "methods", "--colour"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("symerge: error: unknown option --colour")
    assert done.stderr.count("\n") == 1


def test_the_page_of_methods_is_the_rendered_one(capsys):
    assert cli.main(["methods", "--markdown"]) == 0
    page = Path(__file__).parents[1] / "docs" / "methods.md"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8")
