"""One adaptive row of a vision table, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.adapting import Around, learned, share
from experiments.correcting import corrected
from experiments.experts import Model
from experiments.methods import Constants, Outcome, Run, Seed, base_of
from experiments.routing import routed
from experiments.scoring import score
from experiments.tasks.task import Task


def adaptive(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    run: Run,
    constants: Constants,
    around: Around,
) -> Outcome:
    """Adapts on unlabelled test images (or on part of them) and scores."""
    if base_of(run.method) is not None:
        return corrected(model, seed, tasks, run, constants, around)
    if run.method == "wemoe":
        return routed(model, seed, tasks, run, constants, around)
    experts, count = seed.experts, len(tasks)
    adapted, curve = learned(model, seed, tasks, run, constants, around)
    encoders = (adapted.encoder(k) for k in range(count))
    scores = score(model, encoders, adapted.heads, experts.classes, tasks)
    own = share(adapted.layers, adapted.params) / count  # of one task's own layers
    return Outcome(
        run.name or run.method, seed.number, run.protocol == "held_out", scores, adapted,
        stored=1 + (count - 1) * own,
        losses=adapted.losses,
        curve=curve,
    )  # fmt: skip
