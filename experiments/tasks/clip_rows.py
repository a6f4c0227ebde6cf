"""One split of a data set before decoding, in whatever form it lies on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from symerge_jax.data.image_cache import Image
from symerge_jax.errors import BadInput

Form = Literal["project", "parquet", "tfds", "raw"]


class Rows(NamedTuple):
    """Images and labels of one split, read when they are asked for.

    Attributes:
        count: number of images.
        labels: returns the labels as the data has them, int [count].
        images: takes rows (ascending, int [n]) and yields for each the image and its name for
            errors.
        files: what both are read from.
    """

    count: int
    labels: Callable[[], np.ndarray]
    images: Callable[[np.ndarray], Iterator[tuple[Image, str]]]
    files: tuple[Path, ...]


class Found(NamedTuple):
    """A data set in one of the forms.

    Attributes:
        form: which.
        folder: where it lies.
        names: of the classes, in the order of the data's labels; None where the data has none.
        splits: 'train' and 'test' as the benchmark understands them, where present; others under
            their own names.
    """

    form: Form
    folder: Path
    names: tuple[str, ...] | None
    splits: dict[str, Rows]


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Turns whatever a file library raises into `BadInput` that names the file."""
    try:
        yield
    except BadInput:
        raise
    except MemoryError:
        raise
    except Exception as error:  # pyarrow, csv, zipfile and gzip each have errors of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{where}: cannot be read ({reason}); copy the data again") from error
