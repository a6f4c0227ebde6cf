"""Help and shell completion of every command."""

import pytest
from commands import symerge

from symerge_jax.cli import COMMANDS

# An option of each command, and what its help must say about defaults.
OPTIONS = {
    "merge": ("--pretrained", "--scale", "--max-memory", "(default: None)"),
    "moments": ("--kind", "{gram,fisher}", "64 for gram and 256 for fisher", "(default: gram)"),
    "adapt": ("--iterations", "500 otherwise", "0.01 otherwise", "(default: None)"),
    "evaluate": ("--task", "--batch-size", "250 otherwise", "(default: None)"),
    "convert": ("--to", "{hf,open_clip,safetensors}", "(default: False)"),
    "inspect": ("--json", "(default: False)"),
    "verify": ("merge_card.json", "(required)"),
    "methods": ("--version",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_options_and_defaults(capsys, command):
    assert symerge(command, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"usage: symerge {command}" in captured.out
    text = " ".join(captured.out.replace("│", " ").split())
    for expected in OPTIONS[command]:
        assert expected in text


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(capsys, command, shell):
    assert symerge(command, "--tyro-print-completion", shell) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"symerge {command}" in captured.out
