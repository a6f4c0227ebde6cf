"""Records made by hand, for tests of what is said and shown of them."""

from experiments import records

ENVIRONMENT = {
    "symerge_jax": "0.1.0",
    "jax": "0.10.2",
    "device_kind": "cpu",
    "command": "python -m experiments.vision --out /tmp/x",
    "started": "2026-01-02T03:04:05Z",
    "git": {"commit": "0123456789abcdef", "dirty": True},
}


def record(experiment, means, data=None, *, tasks=8, seeds=1, setting="tiny", model=None):
    """A record in which every task has the given numbers.

    `means` is method → accuracy, or method → {metric: value}; with several seeds the values of
    neighbouring seeds are 0.1 apart.
    """
    made = records.new_record(experiment, setting, {"model": model})
    made["environment"] = dict(ENVIRONMENT)
    made["phases_s"] = {"adaptation": 60.0}
    for method, values in means.items():
        for metric, value in (values if isinstance(values, dict) else {"accuracy": values}).items():
            for seed in range(seeds):
                for k in range(tasks):
                    records.add_result(
                        made, method=method, seed=seed, task=f"task{k}", metric=metric,
                        value=value + 0.1 * seed, n=100,
                    )  # fmt: skip
    made["summary"] = records.summarise(made)
    if data is not None:
        made["data"] = data
    return made
