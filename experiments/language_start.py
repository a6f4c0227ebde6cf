"""What a run of the language experiment starts from: settings, texts, the model and its experts.

Three settings share all code after this: the embedded world ("tiny"), folders of text tasks such as
GLUE's ("texts"), and the paper's RoBERTa with public experts ("checkpoints").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments import records, roberta_folders
from experiments.adapting import Around
from experiments.forecasting import text_cost
from experiments.methods import Constants
from experiments.options import Options
from experiments.scene import Made, Start
from experiments.tasks import texts
from experiments.tasks.glue import ORDER
from experiments.tasks.task import Task, check_known
from experiments.text_experts import RECIPE, make_text_experts, text_model
from experiments.tiny import language_base
from experiments.tiny import language_world as world
from experiments.tiny.language_pretraining import Schedule
from experiments.tiny.language_sense import with_nonsense
from symerge_jax.cache import digest
from symerge_jax.cli.errors import nearest
from symerge_jax.cli.progress import say
from symerge_jax.data.roberta_tokenizer import RobertaTokenizer, read_tokenizer
from symerge_jax.errors import BadInput
from symerge_jax.forecast import Cost
from symerge_jax.models.roberta_config import PRESETS
from symerge_jax.parallel import Device

MODELS = ("roberta-base",)
# Mean of the eight: 1043, 872, 408, 1500, 40430, 9815, 5463 and 277.
GLUE_DEV = 7476
LONGEST = 128  # tokens of a text, as for the public experts

# Chosen on validation texts: experiments/LOG.md says what was tried. Hard labels stand among
# distances because a regression is compared by its output; no sample is filtered out, as in the
# paper's section 5 for language.
GENERATED = Constants(
    recipe=RECIPE,
    iterations=300,
    batch_size=32,
    rate=0.003,
    coefficient_rate=0.01,
    entropy_rate=1e-3,
    initial=0.3,
    correction_rate=3e-3,
    objective="hard_ce",
)
# Two thousand training texts a task are soon learned by heart.
FOLDERS = GENERATED._replace(recipe=RECIPE._replace(steps=100, learning_rate=3e-4), iterations=100)
# Of the small model on folders of texts.
READING = Schedule(
    steps=1500, batch_size=64, lengths=(32, 64, LONGEST), share=0.15, sampled=2048, easy_steps=400,
)  # fmt: skip
# Appendix B: 1000 iterations, batches of 32, learning rate 5e-4.
CHECKPOINTS = Constants(
    recipe=None,
    iterations=1000,
    batch_size=32,
    rate=5e-4,
    coefficient_rate=5e-4,
    entropy_rate=1e-3,
    initial=0.3,
    objective="hard_ce",
)


@dataclass(frozen=True)
class TextOptions(Options):
    """Options of experiments on texts, beside those that all share."""

    vocabulary: Path | None = None
    """RoBERTa's vocabulary files, for --data with the small model; otherwise looked for in the data
    folder and in the folders beside it."""


def setting_of(settings: Options) -> str:
    """Returns what a run works on: "tiny", "texts" or "checkpoints"."""
    if settings.model in MODELS:
        return "checkpoints"
    return "texts" if settings.data else "tiny"


def adjusted(settings: Options) -> Constants:
    """Returns the constants of this kind of data, with the options applied."""
    by_setting = {"tiny": GENERATED, "texts": FOLDERS, "checkpoints": CHECKPOINTS}
    constants = by_setting[setting_of(settings)]
    if settings.quick:
        recipe = constants.recipe and constants.recipe._replace(steps=60)
        constants = constants._replace(recipe=recipe, iterations=10)
    if settings.iterations is not None:
        constants = constants._replace(iterations=settings.iterations)
    return constants


def chosen_tasks(settings: TextOptions) -> list[str]:
    """Returns the names of the tasks.

    Raises:
        BadInput: an unknown task, fewer than two, or options that do not go together.
    """
    known = (language_base.MODEL, *MODELS)
    if settings.model not in (None, *known):
        raise BadInput(
            f"--model must be one of {', '.join(known)}; got {settings.model}"
            f"{nearest(settings.model, known)}"
        )
    if settings.model in MODELS:
        return _benchmark_tasks(settings)
    if settings.checkpoints is not None:
        raise BadInput(f"--checkpoints needs --model, one of {', '.join(MODELS)}")
    if settings.data is None:
        if settings.vocabulary is not None:
            raise BadInput("--vocabulary goes with --data; the embedded world has words of its own")
        names = list(settings.tasks or world.TASKS)
        for name in names:
            check_known(name, world.TASKS, "task")
        return names
    found = texts.find_text_tasks(settings.data)
    names = list(settings.tasks or found)
    if not names:
        raise BadInput(
            f"{settings.data}: no text task found; expected folders with train and dev as .tsv, "
            ".csv, .jsonl or .parquet"
        )
    if len(names) < 2:
        raise BadInput(f"{settings.data}: merging needs at least two tasks, found only {names[0]}")
    return names


def _benchmark_tasks(settings: TextOptions) -> list[str]:
    for name in ("checkpoints", "data"):
        if getattr(settings, name) is None:
            raise BadInput(
                f"--model {settings.model} needs --{name} DIR; `python -m experiments.prepare "
                "language` says what belongs there"
            )
    names = list(settings.tasks or ORDER)
    for name in names:
        check_known(name, ORDER, "task")
    return names


def expected(
    settings: TextOptions, names: Sequence[str], constants: Constants
) -> tuple[Cost, dict[str, int]]:
    """Returns what a mini-batch costs, and how many test texts a task has at most.

    Texts of files are counted when they are read: without --limit, as many as GLUE's dev sets have
    on average.
    """
    embedded = settings.data is None
    longest = world.LENGTH if embedded else LONGEST
    config = replace(PRESETS[settings.model or language_base.MODEL], positions=longest + 2)
    if embedded:
        config = replace(config, vocabulary=world.VOCABULARY)
    limit = min(settings.limit or 100, 100) if settings.quick else settings.limit
    count = limit or (world.TEST if embedded else GLUE_DEV)
    one = text_cost(config, longest, constants.batch_size, settings.dtype)
    return one, dict.fromkeys(names, count)


def make(
    settings: TextOptions,
    names: Sequence[str],
    constants: Constants,
    record: records.Record,
    devices: Sequence[Device],
    around: Around,
) -> Made:
    """Reads or makes the model, the tasks and the experts of each seed."""
    limit = min(settings.limit or 100, 100) if settings.quick else settings.limit
    if setting_of(settings) == "checkpoints":
        return _from_checkpoints(settings, names, record, around, limit)
    if settings.data is None:
        with records.phase(record, "tasks"):
            tasks = texts.generated(names, limit=limit, cache=around.cache)
        with records.phase(record, "pre-training"):
            base = language_base.load(
                around.cache, schedule=_schedule(settings, language_base.SCHEDULE),
                devices=devices, bars=around.bars,
            )  # fmt: skip
    else:
        tokenizer = read_vocabulary(settings)
        with records.phase(record, "tasks"):
            tasks = texts.from_folders(
                settings.data, names, tokenizer, length=LONGEST, limit=limit, cache=around.cache
            )
        with records.phase(record, "pre-training"):
            base = _read_sentences(settings, tasks, tokenizer, devices, around)
    encode = language_base.encoder(base.config)
    model = text_model(encode, base.params, f"{base.name} {settings.dtype}")
    assert constants.recipe is not None
    with records.phase(record, "experts"):
        experts = make_text_experts(
            model, base.config, tasks, constants.recipe, settings.seeds,
            devices=devices, cache=around.cache, bars=around.bars,
        )  # fmt: skip
    return Start(model, base.config), tasks, experts


def _schedule(settings: Options, schedule: Schedule) -> Schedule:
    return schedule._replace(steps=60) if settings.quick else schedule


def vocabulary_of(settings: TextOptions) -> RobertaTokenizer:
    """Returns the tokenizer of a run on texts that are not the embedded world's."""
    if settings.model not in MODELS:
        return read_vocabulary(settings)
    assert settings.checkpoints is not None
    base = roberta_folders.find(settings.checkpoints, ()).vocabulary
    return read_tokenizer(settings.vocabulary or base)


def read_vocabulary(settings: TextOptions) -> RobertaTokenizer:
    """Returns RoBERTa's tokenizer, from --vocabulary, the data folder or a folder beside it.

    Raises:
        BadInput: none of them holds a vocabulary.
    """
    if settings.vocabulary is not None:
        return read_tokenizer(settings.vocabulary)
    assert settings.data is not None
    data = settings.data.absolute()
    beside = sorted(path for path in data.parent.iterdir() if path.is_dir() and path != data)
    for folder in (data, *beside):
        if holds_vocabulary(folder):
            say(f"vocabulary: {folder}")
            return read_tokenizer(folder)
    raise BadInput(
        f"{data}: no vocabulary of RoBERTa there nor in the folders beside it (vocab.json with "
        "merges.txt, tokenizer.json, or encoder.json with vocab.bpe and dict.txt); name its "
        "folder with --vocabulary"
    )


def holds_vocabulary(folder: Path) -> bool:
    """Whether a folder has the files that `read_tokenizer` reads as RoBERTa's."""
    return any(
        all((folder / name).is_file() for name in names)
        for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe", "dict.txt"))
    )


def _read_sentences(
    settings: TextOptions,
    tasks: Sequence[Task],
    tokenizer: RobertaTokenizer,
    devices: Sequence[Device],
    around: Around,
) -> language_base.Base:
    """Pre-trains the small model on the tasks' own training texts, without their labels."""
    config = replace(PRESETS[language_base.MODEL], vocabulary=tokenizer.rows, positions=LONGEST + 2)
    trained = [task.train.inputs for task in tasks if task.train is not None]

    def write() -> tuple[np.ndarray, np.ndarray]:
        read = with_nonsense(np.concatenate(trained))
        return read.tokens, read.sense

    schedule = READING._replace(easy_texts=sum(map(len, trained)))
    return language_base.made(
        config,
        write,
        {"texts": digest(*trained), "language": "tasks' own"},
        _schedule(settings, schedule),
        cache=around.cache,
        devices=devices,
        bars=around.bars,
    )


def _from_checkpoints(
    settings: TextOptions,
    names: Sequence[str],
    record: records.Record,
    around: Around,
    limit: int | None,
) -> Made:
    """Reads the benchmark's data and public experts; every seed has the same ones."""
    assert settings.checkpoints is not None
    assert settings.data is not None
    found = roberta_folders.find(settings.checkpoints, names)
    tokenizer = vocabulary_of(settings)
    with records.phase(record, "tasks"):
        tasks = texts.from_folders(
            settings.data, names, tokenizer, length=LONGEST, limit=limit, cache=around.cache
        )
    with records.phase(record, "experts"):
        read = roberta_folders.read(found, tasks, tokenizer, settings.dtype)
    return Start(read.model, read.source), tasks, dict.fromkeys(settings.seeds, read.experts)
