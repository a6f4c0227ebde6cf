"""Fine-tunes RoBERTa on one text task: what `experiments.finetune` does for models of texts.

All of the encoder and a fresh head are trained, with cross-entropy, or with the squared error where
the labels are numbers. `--recipe glue` is that of the public experts of GLUE (Yu et al., "Language
Models are Super Mario", 2024, https://arxiv.org/abs/2311.03099, appendix): ten epochs in batches of
16 at 1e-5 (MRPC: 5e-5), warm-up over 6 % of the steps, then linearly to 0; a tenth of the training
texts is left out for validation, and GLUE's dev texts are the test. `small` is for small encoders.
Each batch is cut to the shortest of four lengths that holds its longest text.

What departs from the public experts: nothing is dropped out, since the encoder has no dropout
(theirs: 0.1); the weights after the last epoch are kept, not those of the epoch that is best on
validation; weight decay also shrinks biases and LayerNorm's scales.

The expert is a folder for RobertaForSequenceClassification, with the vocabulary and
`heads/<task>.safetensors`. Beside all experts of a model lies what they started from, in
`pretrained/`: `experiments.language --checkpoints OUT/experts/<model>` reads them together.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import records
from experiments.finetune_run import (
    Settings,
    begun_state,
    expert_card,
    finish,
    keep_pretrained,
    recipe_name,
    some,
)
from experiments.options import keep_programs
from experiments.roberta_folders import BASES
from experiments.tasks import glue, texts
from experiments.tasks.task import Task
from experiments.text_experts import RECIPE, TextHead, fresh_head
from symerge_jax.cache import digest
from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.roberta import load_roberta
from symerge_jax.checkpoints.roberta_export import save_roberta
from symerge_jax.checkpoints.roberta_heads import write_text_head
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.classifier import logits_of
from symerge_jax.cli.progress import Bars, say
from symerge_jax.data.roberta_tokenizer import RobertaTokenizer, read_tokenizer
from symerge_jax.data.text_columns import glue_name
from symerge_jax.data.text_lengths import length_order
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.files import make_folder
from symerge_jax.finetune import Expert, finetune
from symerge_jax.models.roberta import Encode, by_length, classify, encode_tokens, initial_head
from symerge_jax.models.roberta_config import PRESETS, RobertaConfig
from symerge_jax.notation import Params
from symerge_jax.recipes import Recipe
from symerge_jax.score import computable
from symerge_jax.text_metrics import METRICS
from symerge_jax.verify import write_reference

HUB = {"roberta-base": "FacebookAI/roberta-base"}
LONGEST = 128  # tokens of a text, as for the public experts
CHUNK = 20  # steps of one call of the compiled program


class Start(NamedTuple):
    """The pre-trained model.

    Attributes:
        config: its sizes.
        params: of the encoder, float32.
        source: the checkpoint.
        tokenizer: of its vocabulary.
        name: what the person named, or where it is on the hub.
    """

    config: RobertaConfig
    params: Params
    source: Checkpoint
    tokenizer: RobertaTokenizer
    name: str


def finetune_texts(settings: Settings) -> int:
    """Fine-tunes, scores and writes; the last line printed is the path of the record."""
    settings = replace(settings, task=glue_name(settings.task) or settings.task)
    if settings.task in BASES:
        raise BadInput(
            f"--task {settings.task}: that is where the pre-trained model lies beside the experts; "
            "rename the task's folder"
        )
    folder = settings.expert_folder()
    export.check_output(folder, overwrite=settings.overwrite)
    cache = make_folder(settings.cache_folder())
    keep_programs(cache / "compiled")
    record = records.new_record("finetune", "checkpoints", settings)

    with records.phase(record, "inputs"):
        start = load_start(settings)
        task = read_task(settings, start)
        keep_start(settings, start)
        encode = by_length(
            encode_tokens(start.config, dtype=None if settings.dtype == "float32" else "bfloat16")
        )
    assert task.train is not None
    recipe = chosen_recipe(settings, len(task.train.labels))
    outputs = "numbers to predict" if task.regression else f"{len(task.classes)} classes"
    say(
        f"{task.name}: {len(task.train.labels)} training, {len(task.validation.labels)} validation "
        f"and {len(task.test.labels)} dev texts, {outputs}; {recipe.steps} steps of "
        f"{recipe.accumulate * recipe.batch_size}"
    )
    record["settings"] |= {"recipe": recipe_name(settings), "constants": recipe._asdict()}

    with records.phase(record, "fine-tuning"), Bars() as bars:
        expert = train(settings, start, task, encode, recipe, bars)
    with records.phase(record, "individual"):
        scores = add_scores(record, settings.seed, encode, expert, task)
    record["notes"].append(f"the expert is {folder}")
    write_expert(settings, start, task, expert, recipe, scores)
    finish(
        settings, record, expert,
        ", ".join(f"{name} {value:.2f}" for name, value in scores.items()),
    )  # fmt: skip
    return 0


def load_start(settings: Settings) -> Start:
    """Reads the pre-trained encoder and its vocabulary.

    Raises:
        BadInput: nothing was named, it cannot be read, it is another model than `--model`, or the
            vocabulary is missing or another's.
    """
    model, name = settings.model, settings.pretrained or HUB.get(settings.model)
    if name is None:
        raise BadInput(
            f"--model {model} needs --pretrained: a folder with a RoBERTa of these sizes and its "
            "vocabulary, or its owner/name on the hub"
        )
    loaded = load_roberta(name)
    for note in loaded.notes:
        say(f"{name}: {note}")
    for size in ("width", "depth", "heads"):
        found, wanted = getattr(loaded.config, size), getattr(PRESETS[model], size)
        if found != wanted:
            raise BadInput(f"{name}: its {size} is {found}, but that of {model} is {wanted}")
    beside = loaded.source.parts[0].path.parent
    tokenizer = read_tokenizer(settings.vocabulary or beside)
    tokenizer.check_rows(loaded.config.vocabulary, name)
    return Start(loaded.config, computable(loaded.params), loaded.source, tokenizer, name)


def read_task(settings: Settings, start: Start) -> Task:
    """Reads the task's texts, training and validation, and dev as test.

    Raises:
        BadInput: there is no such task, it is unreadable, or it has no labels.
    """
    (task,) = texts.from_folders(
        settings.data, [settings.task], start.tokenizer,
        length=min(LONGEST, start.config.length), cache=settings.cache_folder(),
    )  # fmt: skip
    assert task.train is not None
    return task._replace(
        train=some(task.train, settings.limit),
        validation=some(task.validation, settings.limit),
        test=some(task.test, settings.limit),
    )


def chosen_recipe(settings: Settings, count: int) -> Recipe:
    """Returns the recipe with the options applied, for this many training texts."""
    if recipe_name(settings) == "glue":
        rates = {task.name: task.rate for task in glue.TASKS}
        given = {"epochs": settings.epochs, "batch_size": settings.batch_size}
        options = {name: value for name, value in given.items() if value is not None}
        recipe = glue.recipe(count, rates.get(settings.task, 1e-5), **options)
        passes = recipe.steps
    else:
        recipe = RECIPE._replace(batch_size=settings.batch_size or RECIPE.batch_size)
        passes = settings.epochs and settings.epochs * -(-count // recipe.batch_size)
    accumulate = settings.accumulate or 1
    steps = recipe.steps if passes is None else max(1, passes // accumulate)
    rate = settings.learning_rate or recipe.learning_rate
    return recipe._replace(
        steps=settings.steps or steps,
        accumulate=accumulate,
        learning_rate=rate,
        head_rate=rate * (recipe.head_rate / recipe.learning_rate),
    )


def first_head(settings: Settings, config: RobertaConfig, task: Task) -> TextHead:
    """Draws the head that training begins with; for `glue` as transformers does, deviation 0.02."""
    if recipe_name(settings) == "small":
        return fresh_head(config, task, settings.seed)
    key = jax.random.fold_in(jax.random.key(settings.seed), zlib.crc32(task.name.encode()))
    return initial_head(config, len(task.classes), key)


def train(
    settings: Settings, start: Start, task: Task, encode: Encode, recipe: Recipe, bars: Bars
) -> Expert:
    """Trains, or goes on where an interrupted run stopped."""
    assert task.train is not None
    return finetune(
        encode, classify, start.params, first_head(settings, start.config, task),
        task.train.inputs, task.train.labels, recipe,
        loss="squared_error" if task.regression else "cross_entropy",
        seed=settings.seed,
        chunk_steps=CHUNK,
        on_chunk=bars.follow(
            f"expert {task.name}", recipe.steps, recipe.batch_size * recipe.accumulate
        ),
        state_folder=begun_state(settings),
    )  # fmt: skip


def add_scores(
    record: records.Record, seed: int, encode: Encode, expert: Expert, task: Task
) -> dict[str, float]:
    """Scores the expert on dev, with the task's metric first, and on validation; in percent."""
    others = ("accuracy", "f1") if len(task.classes) == 2 else ("accuracy",)
    names = dict.fromkeys((task.metric, *(() if task.regression else others)))
    scores = {}
    for prefix, split in (("", task.test), ("validation_", task.validation)):
        order = length_order(split.inputs)  # so that batches hold texts of like length
        logits = predict(
            logits_of(encode, classify),
            (expert.params, expert.head, np.ones(len(task.classes), bool)), split.inputs[order],
        )  # fmt: skip
        for name in names:
            value = float(METRICS[name](logits, split.labels[order]))
            records.add_result(
                record, method=records.EXPERT, seed=seed, task=task.name, metric=prefix + name,
                value=value, n=len(order),
            )  # fmt: skip
            scores[prefix + name] = value
    return scores


def keep_start(settings: Settings, start: Start) -> None:
    """Writes what experts start from beside them, unless it is there.

    Raises:
        BadInput: another model is there.
    """

    def is_same(there: Path) -> bool:
        return digest(computable(load_roberta(there).params)) == digest(start.params)

    def write(folder: Path) -> None:
        save_roberta(folder, start.params, start.config, like=start.source)
        _finish(settings, start, folder, {"method": "pretrained", "pretrained": start.name})

    keep_pretrained(settings, start.name, BASES, is_same, write)


def write_expert(
    settings: Settings,
    start: Start,
    task: Task,
    expert: Expert,
    recipe: Recipe,
    scores: dict[str, float],
) -> None:
    """Writes the expert as a classifier of Hugging Face, whole or not at all."""
    shown = {name: {records.EXPERT: value} for name, value in scores.items()}
    card = expert_card(settings, recipe, start.name, shown)
    params, head = jax.tree.map(np.asarray, (expert.params, expert.head))
    classes = None if task.regression else task.classes
    with export.new_folder(settings.expert_folder(), overwrite=settings.overwrite) as folder:
        save_roberta(
            folder, params, start.config, head=head, classes=classes, like=start.source
        )  # fmt: skip
        write_text_head(folder, task.name, head, classes)
        _finish(settings, start, folder, card)


def _finish(settings: Settings, start: Start, folder: Path, card: Mapping[str, Any]) -> None:
    """Adds the vocabulary where it was not copied, the reference outputs and the card."""
    copied = any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json"))
    if settings.vocabulary is not None or not copied:
        (folder / "tokenizer.json").unlink(missing_ok=True)  # it would contradict
        start.tokenizer.save(folder)
    write_reference(folder)
    export.write_card(folder, card)
