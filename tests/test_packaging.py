"""The requirement files and the extras of pyproject.toml say the same."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_an_extra_is_its_requirements_file(extra):
    lines = (ROOT / f"requirements-{extra}.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert lines == ["-r requirements.txt", *PROJECT["optional-dependencies"][extra]]
