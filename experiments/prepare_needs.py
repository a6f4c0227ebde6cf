"""The files that experiments with public checkpoints need: their names, folders and sources.

Layouts below the checkpoint folder, with MODEL as in ViT-B-32 and SET as in EuroSAT:

    tanganke            clip-vit-base-patch32/, clip-vit-base-patch32_eurosat/ (Hugging Face)
    task_vectors, tint  MODEL/zeroshot.pt, MODEL/SET/finetuned.pt, MODEL/head_SET.pt
    tall_masks          MODEL/SETVal/nonlinear_{zeroshot,finetuned}.pt, MODEL/head_SET[Val].pt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from experiments.fetch import Kind
from experiments.tasks.clip_sets import ORDER8, ClipSet
from experiments.tasks.clip_tables import split_of

# Name of the model → in the names of Hugging Face.
MODELS = {
    "ViT-B-32": "clip-vit-base-patch32",
    "ViT-B-16": "clip-vit-base-patch16",
    "ViT-L-14": "clip-vit-large-patch14",
}

Source = Literal["tanganke", "tint", "task_vectors", "tall_masks"]

# Where the pickled checkpoints are; None where only a browser gets them.
REPOSITORIES: dict[str, str | None] = {
    "tint": "kasurashan/checkpoints_tint",
    "tall_masks": "nik-dim/tall_masks",
    "task_vectors": None,
}
_DRIVE = "the Google Drive folder that github.com/mlfoundations/task_vectors links to"

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Missing(NamedTuple):
    """A line of the table at the end."""

    what: str
    path: str
    origin: str


@dataclass(frozen=True)
class Need:
    """Something that must be there.

    Attributes:
        what: in a word or two.
        alternatives: files below `folder`; all of one alternative are needed, the first is best.
        folder: below the checkpoint or data folder; where the root of the repository goes.
        repository: owner/name on the hub, None where it is not there.
        origin: where to get it, for people.
        kind: of repository.
        revision: where the files are if not on the default branch.
        row: the data set, for data.
    """

    what: str
    alternatives: tuple[tuple[str, ...], ...]
    folder: str
    repository: str | None
    origin: str
    kind: Kind = "model"
    revision: str | None = None
    row: ClipSet | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint, not data."""
        return self.row is None

    @property
    def wanted(self) -> str:
        """What to look for, in words."""
        if self.row is not None:
            return "parquet files of train and test"
        return " or ".join(" and ".join(names) for names in self.alternatives)

    @property
    def shown(self) -> str:
        """The file or folder where it belongs."""
        first = self.alternatives[0] if self.alternatives else ()
        return f"{self.folder}/{first[-1]}".strip("/") if first else self.folder

    def choose(self, files: Sequence[str]) -> list[str]:
        """The files of a repository to fetch; none if it lacks them."""
        if self.row is not None:
            return _choose_shards(self.row, files)
        for names in self.alternatives:
            ends = [[file for file in files if f"/{file}".endswith(f"/{name}")] for name in names]
            if all(ends):
                return [min(found, key=len) for found in ends]
        return []


def checkpoint_needs(source: Source, model: str, rows: Sequence[ClipSet]) -> list[Need]:
    """The pre-trained model, and per set its expert and (if it has one of its own) its head."""
    if source == "tanganke":
        return _tanganke(MODELS[model], rows)
    repository = REPOSITORIES[source]
    origin = _DRIVE if repository is None else f"https://huggingface.co/{repository}"

    def need(what: str, *paths: str) -> Need:
        alternatives = tuple((f"{model}/{path}",) for path in paths)
        return Need(what, alternatives, "", repository, origin)

    if source == "tall_masks":
        zero_shots = [f"{row.name}Val/nonlinear_zeroshot.pt" for row in rows]
        needs = [need("pre-trained", *zero_shots, "zeroshot.pt")]
        for row in rows:
            expert = f"{row.name}Val/nonlinear_finetuned.pt"
            heads = f"head_{row.name}Val.pt", f"head_{row.name}.pt"
            needs += [need(f"{row.key} expert", expert), need(f"{row.key} head", *heads)]
        return needs
    needs = [need("pre-trained", "zeroshot.pt")]
    for row in rows:
        needs.append(need(f"{row.key} expert", f"{row.name}/finetuned.pt"))
        needs.append(need(f"{row.key} head", f"head_{row.name}.pt"))
    return needs


def _tanganke(name: str, rows: Sequence[ClipSet]) -> list[Need]:
    def need(what: str, owner: str, folder: str, *alternatives: tuple[str, ...]) -> Need:
        repository = f"{owner}/{folder}"
        origin = f"https://huggingface.co/{repository}"
        return Need(what, alternatives, folder, repository, origin)

    weights = tuple(("config.json", file) for file in _WEIGHTS)
    return [
        need("pre-trained", "openai", name, *weights),
        need("vocabulary", "openai", name, ("vocab.json", "merges.txt"), ("tokenizer.json",)),
        *(need(f"{row.key} expert", "tanganke", f"{name}_{row.suffix}", *weights) for row in rows),
    ]


def data_need(row: ClipSet) -> Need:
    """The parquet files of a set, or where else it is."""
    ways = []
    if row.hub is not None:
        at = f" (revision {row.hub.revision})" if row.hub.revision else ""
        ways.append(f"https://huggingface.co/datasets/{row.hub.dataset}{at}")
    if row.prepared is not None:
        ways.append(
            f'tensorflow-datasets: tfds.builder("{row.prepared.name}", data_dir="DIR", '
            'file_format="array_record").download_and_prepare(), with requirements-data.txt'
        )
    ways += _AUTHORS.get(row.key, ())
    hub = row.hub
    return Need(
        row.key,
        (),
        row.key,
        hub.dataset if hub else None,
        " or ".join(ways),
        "dataset",
        hub.revision if hub else None,
        row,
    )


# Files of the authors that are read as they are.
_AUTHORS = {
    "gtsrb": ("https://benchmark.ini.rub.de (Final_Training, Final_Test, GT-final_test.csv)",),
    "fer2013": ("fer2013.csv of the challenge (Kaggle)",),
    "emnist": ("emnist-digits-*-ubyte.gz of https://www.nist.gov/itl/products-and-services/"
               "emnist-dataset",),
    "rendered_sst2": ("the archive that github.com/openai/CLIP links to (data/rendered-sst2.md)",),
}  # fmt: skip


def _choose_shards(row: ClipSet, files: Sequence[str]) -> list[str]:
    hub = row.hub
    if hub is None:
        return []
    wanted = {hub.train, hub.test} | ({"validation"} if row.key == "eurosat" else set())
    paths = [PurePosixPath(file) for file in files if file.endswith(".parquet")]
    paths = [path for path in paths if hub.config in path.parts] or paths
    shards = [path for path in paths if split_of(path) in wanted]
    if {hub.train, hub.test} - {split_of(path) for path in shards}:
        return []
    return [*map(str, shards), *(file for file in files if file == "README.md")]


def cautions(source: Source, rows: Sequence[ClipSet]) -> list[str]:
    """What must be known of a source's experts for these sets."""
    keys, found = [row.key for row in rows], []
    if source == "tall_masks" and "dtd" in keys:
        found.append(
            "TALL-masks' expert of dtd was trained on the test images as well (its published test "
            "accuracy is 97.98 %, others have 79.4 %); take this one from --source tint or "
            "task_vectors"
        )
    if source == "tanganke" and "emnist" in keys:
        found.append(
            "tanganke's expert of emnist is one for the 26 letters, the benchmark's emnist is the "
            "10 digits: its predictions mean nothing there; leave emnist out, or take --source "
            "tint or tall_masks"
        )
    if source == "tanganke":
        found.append(
            "tanganke's experts follow another recipe than the paper's, and their accuracies "
            "differ by some tenths"
        )
    if source == "task_vectors" and (later := [key for key in keys if key not in ORDER8]):
        found.append(f"task_vectors has the first eight sets only, not {', '.join(later)}")
    return found
