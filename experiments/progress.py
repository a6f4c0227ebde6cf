"""Progress bars and messages on the terminal, those of the `symerge` command."""

from symerge_jax.cli.progress import CONSOLE, Bars, say

__all__ = ["CONSOLE", "Bars", "say"]
