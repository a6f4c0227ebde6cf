"""How much memory a merge takes: in a process of its own, in memory and from files.

    python -m benchmarks.merge_methods_memory MODEL METHOD TASKS BLOCKS

makes the task vectors, merges tiny ones to load what every merge needs, merges once, and prints
JSON: bytes above what was resident before the merge, and bytes of the result. The time it takes to
compile is not in any figure, but the memory is.
"""

import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks.merge_io import Sample, launched
from benchmarks.merge_methods_problem import Tower, draw, extras, on_device, program, tower
from symerge_jax.merge import METHODS

TINY = "tiny-64x3"


def in_memory(model: str, name: str, tasks: int, blocks: int | None) -> dict[str, Any]:
    """Returns the peak of a merge in models, the task vectors counted, and what it was made of.

    Where only a part of the tower is merged, the result is counted as large as that of the whole
    tower; the rest of the peak belongs to one matrix at a time, so it is the same for both.
    """
    words = [model, name, str(tasks), str(0 if blocks is None else blocks)]
    sample = launched(["-m", "benchmarks.merge_methods_memory", *words])
    above, result = json.loads(sample.output.strip().rpartition("\n")[2])
    part = tower(model, blocks)
    unseen = result * (part.whole_bytes / part.bytes - 1)
    return {
        "form": "compressed" if METHODS[name].compress else "whole",
        "above_bytes": above,
        "result_bytes": result,
        "models": tasks + (above + unseen) / part.whole_bytes,
    }


def from_files(name: str, models: list[Path], work: Path) -> Sample:
    """Runs `symerge merge` on θ₀ and the experts and removes what it wrote."""
    words = ["-m", "symerge_jax", "merge", name, "--pretrained", str(models[0])]
    words += ["--experts", *map(str, models[1:]), "--output", str(work / "out")]
    sample = launched(words, {"XDG_CACHE_HOME": str(work / "programs")})
    shutil.rmtree(work / "out")
    return sample


def main(words: list[str]) -> None:
    """The process that `in_memory` starts."""
    model, name, tasks, blocks = words[0], words[1], int(words[2]), int(words[3]) or None
    merge(name, tower(TINY), tasks)
    part = tower(model, blocks)
    taus, more = on_device(draw(part.shapes, tasks)), extras(name, part, tasks)
    run = METHODS[name].compress or program(name)
    before = resident_bytes()
    result = jax.block_until_ready(run(taus, **more))
    above = max(0, peak_bytes() - before)  # the two are counted a few pages apart
    print(json.dumps([above, sum(leaf.nbytes for leaf in jax.tree.leaves(result))]))


def merge(name: str, part: Tower, tasks: int) -> None:
    """Merges once, for what it leaves behind: loaded libraries, threads, compiled programs."""
    run = METHODS[name].compress or program(name)
    taus, more = on_device(draw(part.shapes, tasks)), extras(name, part, tasks)
    jax.block_until_ready(run(taus, **more))


def peak_bytes() -> int:
    """The most this process ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    """What this process holds now; where the system does not say, the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1:])
