"""The options that all experiments share, and what they mean to a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from symerge_jax.cli.programs import keep_programs
from symerge_jax.errors import BadInput

__all__ = ["Options", "check", "keep_programs"]


@dataclass(frozen=True)
class Options:
    """Options shared by all experiments."""

    tasks: tuple[str, ...] | None = None
    """Names of the tasks; the experiment's own otherwise."""
    task_count: Literal[8, 14, 20] = 8
    """How many tasks of the embedded world, if none is named."""
    methods: tuple[str, ...] | None = None
    """Names of the methods, or "all"; the experiment's own otherwise."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of fine-tuning, task order and batches; one run each."""
    iterations: int | None = None
    """Rounds of adaptation over the tasks; the experiment's own otherwise."""
    limit: int | None = None
    """Largest number of test inputs per task; all otherwise."""
    model: str | None = None
    """Name of the model; the embedded tiny CLIP otherwise."""
    checkpoints: Path | None = None
    """Folder of pre-trained and fine-tuned checkpoints."""
    data: Path | None = None
    """Folder with one folder per task; the embedded world otherwise."""
    out: Path = Path("runs")
    """Folder under which each run gets its own."""
    cache: Path | None = None
    """Folder of what is made once (pictures, experts, labels, programs); OUT/cache otherwise."""
    devices: int | None = None
    """Devices to use; all otherwise (on a CPU: one per core)."""
    parallel: Literal["runs", "data"] = "runs"
    """What devices share: independent runs, or every mini-batch of SyMerge or AdaMerging."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of forward and backward passes; coefficients, heads and losses stay float32."""
    resume: bool = False
    """Go on from what an interrupted or earlier equal run left in the cache."""
    quick: bool = False
    """A rough run with few steps and inputs, to see that everything works."""
    dry_run: bool = False
    """Say what would be done, and stop."""

    def cache_folder(self) -> Path:
        """Returns where expensive things are kept."""
        return (self.cache or self.out / "cache").absolute()


def check(options: Options) -> None:
    """Raises `BadInput` for numbers out of range and combinations that cannot run."""
    for name in ("iterations", "limit", "devices"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name} must be at least 1, got {value}")
    if not options.seeds or min(options.seeds) < 0:
        raise BadInput(f"--seeds must be numbers from 0 upwards, got {list(options.seeds)}")
    for name in ("seeds", "tasks", "methods"):
        values = getattr(options, name) or ()
        if len(set(values)) < len(values):
            raise BadInput(f"--{name} names one thing twice: {' '.join(map(str, values))}")
    if options.tasks is not None and len(options.tasks) < 2:
        raise BadInput(f"merging needs at least two experts, got --tasks {' '.join(options.tasks)}")
