"""One loop of `benchmarks.against_torch` in a process of its own: its memory, and how it compiles.

    python -m benchmarks.against_torch_process LOOP JSON-OF-SETTINGS

makes the problem, runs the loop once, and prints JSON: the largest resident set, the most that the
device held, and of ours what compiling took. Programs are kept in `SYMERGE_BENCHMARK_PROGRAMS`, if
that is set, so that the same process started again reads them.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from benchmarks import adaptation_step
from benchmarks.adaptation_step import Problem, compile_seconds, compiled_loop, make_problem
from benchmarks.merge_io import launched
from benchmarks.merge_methods_memory import peak_bytes
from benchmarks.merge_methods_problem import cores
from symerge_jax.cli.programs import keep_programs
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import PRESETS

PROGRAMS = "SYMERGE_BENCHMARK_PROGRAMS"
STEPS = 2  # of the loop: the second has all that the first left behind


def measured(loop: str, settings: dict[str, Any], programs: Path | None = None) -> dict[str, Any]:
    """Starts the process; returns what it printed.

    Args:
        loop: "published", "improved" or "ours".
        settings: those of `benchmarks.against_torch` that make the problem.
        programs: folder that keeps what is compiled.
    """
    words = ["-m", "benchmarks.against_torch_process", loop, json.dumps(settings)]
    sample = launched(words, {PROGRAMS: "" if programs is None else str(programs)})
    return json.loads(sample.output.strip().rpartition("\n")[2])


def in_processes(settings: dict[str, Any]) -> dict[str, Any]:
    """Runs each loop in a process of its own; ours twice, the second time from kept programs."""
    found: dict[str, Any] = {name: measured(name, settings) for name in ("published", "improved")}
    with tempfile.TemporaryDirectory(prefix="against_torch") as folder:
        cold = measured("ours", settings, Path(folder))
        warm = measured("ours", settings, Path(folder))
    found["ours"] = {
        **warm,
        "compile_seconds": {"cold": cold["compile_seconds"], "kept": warm["compile_seconds"]},
    }
    return found


def on(device: str) -> None:
    """Makes JAX run on a device; it must not have done anything yet.

    Raises:
        BadInput: JAX does not find it.
    """
    if device == "gpu":
        # PyTorch needs memory too.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_platforms", "cuda,cpu" if device == "gpu" else "cpu")
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise BadInput(
            f"--device {device}: JAX finds none ({str(error).splitlines()[0]})"
        ) from error
    if found != device:
        raise BadInput(
            f"--device {device}: JAX runs on {found}; give that, or install JAX for {device} "
            "(requirements-cuda12.txt)"
        )


def drawn(settings: dict[str, Any]) -> Problem:
    """Returns random weights, images and labels for as many steps as the settings say."""
    sizes = {name: settings[name] for name in ("model", "tasks", "steps", "batch_size", "images")}
    return make_problem(adaptation_step.Settings(**sizes, repeats=1), settings["dtype"])


def main(words: list[str]) -> None:
    """The process that `measured` starts."""
    loop, settings = words[0], json.loads(words[1])
    found = ours(settings) if loop == "ours" else theirs(loop, settings)
    print(json.dumps({**found, "peak_bytes": peak_bytes()}))


def ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Compiles and runs our loop."""
    on(settings["device"])
    programs = os.environ.get(PROGRAMS)
    if programs:
        keep_programs(Path(programs), seconds=0)
    with jax.default_matmul_precision(jax_precision(settings)):
        problem = drawn({**settings, "steps": STEPS})
        taken = compile_seconds(compiled_loop, problem)
    memory = jax.devices()[0].memory_stats() or {}
    return {"compile_seconds": taken, "device_peak_bytes": memory.get("peak_bytes_in_use")}


def theirs(loop: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs a loop of PyTorch."""
    on("cpu")  # JAX draws the numbers and takes no memory of the GPU
    from benchmarks import against_torch_rules as rules

    problem = drawn({**settings, "steps": STEPS})
    device = rules.use(settings["device"], cores(), settings["precision"])
    config = PRESETS[settings["model"]].vision
    given = rules.given(config, problem, device, settings["dtype"], keep=False)
    if loop == "published":
        rules.published(given, rules.Experts.of(given))
    else:
        compiled = settings["torch_compile"]
        rules.improved(given, rules.Held.of(given, compiled=compiled))
    return {"device_peak_bytes": rules.peak_bytes(device)}


def jax_precision(settings: dict[str, Any]) -> str:
    """Returns JAX's name for the precision of float32 products."""
    return {"highest": "highest", "tf32": "tensorfloat32"}[settings["precision"]]


if __name__ == "__main__":
    main(sys.argv[1:])
