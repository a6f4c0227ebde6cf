"""Files of scenes with maps of labels, depths and normals; read one map at a time.

    DIR/{image,label,depth,normal}/<scene>.npy       MTAN's folders
    DIR/{image,label,depth,normal}/<scene>.*         one's own: image and label may be pictures
    DIR/<scene>.npz                                  `rgb`, `label13`, `depth`, `normal`, `valid`
    DIR/*.parquet                                    the hub's: image, segmentation, depth, normal

Only `image` and `rgb` must be there; an npz without `rgb` is no scene. Scenes with numbers as names
come in the order of the numbers, others in that of their names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from symerge_jax.data.decode import SUFFIXES, read_pixels
from symerge_jax.data.npz import read_member
from symerge_jax.errors import BadInput

# Each kind of map, and its names in a folder, an npz and a parquet file.
FOLDERS = {"images": "image", "labels": "label", "depths": "depth", "normals": "normal"}
_MEMBERS = {"images": "rgb", "labels": "label13", "depths": "depth", "normals": "normal"}
_COLUMNS = {
    "images": ("image", "rgb"),
    "labels": ("segmentation", "label", "label13"),
    "depths": ("depth",),
    "normals": ("normal", "normals"),
}
_BATCH = 8  # rows of a parquet file held at a time


class Map(NamedTuple):
    """One map as it was stored.

    Attributes:
        where: names it in an error.
        raw: the array; None where the scene lacks it.
        valid: bool [height, width], which pixels count; None for all.
    """

    where: str
    raw: np.ndarray | None
    valid: np.ndarray | None = None


class SceneFiles(NamedTuple):
    """Scenes that were found and not yet read.

    Attributes:
        path: what they were found in.
        count: how many.
        files: all that they are read from.
        maps: kind ("images", "labels", "depths", "normals") → the map of each scene, in order.
    """

    path: Path
    count: int
    files: tuple[Path, ...]
    maps: Callable[[str], Iterator[Map]]


def find_scenes(path: Path) -> SceneFiles:
    """Finds the scenes of one npz, one parquet file, or one folder.

    Raises:
        BadInput: there are none, or a file cannot be read.
    """
    if not path.exists():
        above = next((p for p in path.parents if p.is_dir()), Path())
        there = ", ".join(p.name for p in entries(above)[:10])
        raise BadInput(f"{path}: does not exist; {above} holds {there or 'nothing'}; check it.")
    if path.is_file():
        return scenes_in(path, [path])
    if (path / "image").is_dir():
        return _of_folders(path)
    found = entries(path)
    for suffix in (".npz", ".parquet"):
        if files := [p for p in found if p.suffix.lower() == suffix]:
            return scenes_in(path, sorted(files, key=_in_order(files)))
    splits = [p.name for p in found if p.is_dir() and (p / "image").is_dir()]
    hint = f"give {path / splits[0]}" if splits else "add some, or check the path"
    raise BadInput(
        f"{path}: expected scenes (a folder image, npz or parquet files), found "
        f"{', '.join(p.name for p in found[:10]) or 'nothing'}; {hint}."
    )


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden entries.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise BadInput(f"{folder}: cannot be read ({error.strerror}); check the path.") from error


def scenes_in(path: Path, files: list[Path]) -> SceneFiles:
    """The scenes of files of one type.

    Args:
        path: what they were found in.
        files: npz or parquet files, in order.

    Raises:
        BadInput: they are of another type, or hold no scene.
    """
    match files[0].suffix.lower():
        case ".npz":
            return _of_npz(path, files)
        case ".parquet":
            return _of_parquet(path, files)
    raise BadInput(
        f"{path}: expected a folder of scenes, an npz or a parquet file, found a file of type "
        f"{path.suffix or 'none'}; give one of those."
    )


def _in_order(files: Sequence[Path]) -> Callable[[Path], Any]:
    numbered = all(file.stem.isdecimal() for file in files)
    return (lambda file: (int(file.stem), file.name)) if numbered else (lambda file: file.name)


# --- folders of maps ----------------------------------------------------------------------------


def _of_folders(path: Path) -> SceneFiles:
    images = _by_stem(path / "image", (*SUFFIXES, ".npy"))
    if not images:
        raise BadInput(
            f"{path / 'image'}: expected images (npy, {' '.join(SUFFIXES)}), found none; add some."
        )
    stems = [file.stem for file in sorted(images.values(), key=_in_order([*images.values()]))]
    files = {"images": images}
    for kind in ("labels", "depths", "normals"):
        suffixes = (*SUFFIXES, ".npy") if kind == "labels" else (".npy",)
        folder = path / FOLDERS[kind]
        files[kind] = _by_stem(folder, suffixes) if folder.is_dir() else {}
        if files[kind] or folder.is_dir():
            _check_stems(folder, stems, files[kind], images, suffixes)

    def maps(kind: str) -> Iterator[Map]:
        for stem in stems:
            file = files[kind].get(stem)
            raw = None if file is None else _read(file, grey=kind == "labels")
            yield Map(str(file or path / FOLDERS[kind]), raw)

    every = tuple(found[stem] for found in files.values() for stem in stems if stem in found)
    return SceneFiles(path, len(stems), every, maps)


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in entries(folder):
        if file.suffix.lower() in suffixes and not file.is_dir():
            if file.stem in files:
                raise BadInput(
                    f"{file}: is a second file for the scene of {files[file.stem].name}; keep one."
                )
            files[file.stem] = file
    return files


def _check_stems(
    folder: Path,
    stems: Sequence[str],
    files: dict[str, Path],
    images: dict[str, Path],
    suffixes: Sequence[str],
) -> None:
    for stem in stems:
        if stem not in files:
            raise BadInput(
                f"{folder}: expected a file of the same name for {images[stem]}, found no "
                f"{stem} of type {', '.join(suffixes)} among {len(files)}; add it (depths in "
                "metres and normals are npy files of floats) or remove the image."
            )


def _read(file: Path, *, grey: bool) -> np.ndarray:
    """An npy file, or a picture; of a picture with a palette the numbers, if it is to be grey."""
    if file.suffix.lower() != ".npy":
        return _palette_numbers(file) if grey else _rgb(read_pixels(file, str(file), size=1))
    try:
        with open(file, "rb") as stream:  # np.load forgets to close a file that it refuses
            array = np.load(stream, allow_pickle=False)
    except OSError as error:
        reason = error.strerror or "it ends too early"
        raise BadInput(f"{file}: cannot be read ({reason}); copy it again.") from error
    except Exception as error:  # ValueError, EOFError and others, for files that end too early
        raise BadInput(
            f"{file}: is damaged or not an npy file ({_reason(error)}); copy it again."
        ) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise BadInput(f"{file}: expected one array, found an npz; save it with numpy.save.")
    return array


def _palette_numbers(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode in ("P", "L", "I;16", "I"):
                return np.asarray(image)
            mode = image.mode
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError and others
        raise BadInput(f"{file}: cannot be read ({_reason(error)}); copy it again.") from error
    raise BadInput(
        f"{file}: expected labels as a grey picture of class numbers, found mode {mode}; save the "
        "numbers, not colours."
    )


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels


# --- npz ----------------------------------------------------------------------------------------


def _of_npz(path: Path, files: list[Path]) -> SceneFiles:
    scenes, last = [], ()
    for file in files:
        with _npz(file) as pack:
            last = pack.files
        if "rgb" in last:
            scenes.append(file)
    if not scenes:
        raise BadInput(
            f"{path}: expected npz files with `rgb` (and `label13`, `depth`, `normal`), found "
            f"{', '.join(last) or 'no array'} in {files[-1].name}; save the image under that name."
        )

    def maps(kind: str) -> Iterator[Map]:
        for file in scenes:
            name = _MEMBERS[kind]
            with _npz(file) as pack:
                raw = _member(file, pack, name)
                valid = None if kind == "images" else _member(file, pack, "valid")
            yield Map(f"{file}: `{name}`", raw, None if valid is None else valid.astype(bool))

    return SceneFiles(path, len(scenes), tuple(scenes), maps)


@contextmanager
def _npz(file: Path) -> Iterator[Any]:
    try:
        stream = open(file, "rb")  # noqa: SIM115 (closed below, where the `except` does not reach)
    except OSError as error:
        raise BadInput(
            f"{file}: cannot be read ({error.strerror}); check its permissions."
        ) from error
    with stream:
        try:
            pack = np.load(stream, allow_pickle=False)
        except Exception as error:  # NumPy and zipfile raise ValueError, EOFError, BadZipFile, ...
            raise BadInput(f"{file}: is damaged or not an npz file; copy it again.") from error
        if not isinstance(pack, np.lib.npyio.NpzFile):
            raise BadInput(f"{file}: expected an npz, found one array; save it with numpy.savez.")
        with pack:
            yield pack


def _member(file: Path, pack: Any, name: str) -> np.ndarray | None:
    if name not in pack.files:
        return None
    try:
        return read_member(pack, name)
    except Exception as error:  # as above; zlib.error for flipped bytes
        raise BadInput(
            f"{file}: `{name}` is damaged ({_reason(error)}); copy the file again."
        ) from error


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


# --- parquet ------------------------------------------------------------------------------------


def _of_parquet(path: Path, files: list[Path]) -> SceneFiles:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{path}: reading parquet needs the package pyarrow; install it with pip install "
            "pyarrow, or save the scenes as npz."
        ) from error
    counts, columns = [], {}
    for file in files:
        with _reading(file), pq.ParquetFile(file) as table:
            counts.append(table.metadata.num_rows)
            names = table.schema_arrow.names
        columns[file] = {
            kind: next((name for name in known if name in names), None)
            for kind, known in _COLUMNS.items()
        }
        if columns[file]["images"] is None:
            raise BadInput(
                f"{file}: expected a column image, found {', '.join(names) or 'none'}; use a data "
                "set of scenes."
            )
    if not sum(counts):
        raise BadInput(f"{path}: expected at least one row, found none; copy it again.")

    def maps(kind: str) -> Iterator[Map]:
        for file, count in zip(files, counts, strict=True):
            column = columns[file][kind]
            if column is None:
                yield from (Map(str(file), None) for _ in range(count))
            else:
                yield from _column(file, column)

    return SceneFiles(path, sum(counts), tuple(files), maps)


def _column(file: Path, column: str) -> Iterator[Map]:
    import pyarrow.parquet as pq

    row = 0
    with _reading(file), pq.ParquetFile(file) as table:
        for batch in table.iter_batches(_BATCH, columns=[column]):
            for i in range(batch.num_rows):
                where = f"{file}: {column} of row {row}"
                yield Map(where, _nested(batch.column(0).slice(i, 1), where))
                row += 1


def _nested(cell: Any, where: str) -> np.ndarray:
    """Lists in lists, of one length at each depth → an array. `cell` holds one row."""
    import pyarrow as pa
    from pyarrow import compute

    pc: Any = compute  # its functions come to be when it is imported
    if isinstance(cell, pa.ExtensionArray):
        cell = cell.storage
    shape = []
    while pa.types.is_nested(cell.type) and not pa.types.is_struct(cell.type):
        lengths = pc.min_max(pc.list_value_length(cell)).as_py()
        if cell.null_count or not lengths["min"] or lengths["min"] != lengths["max"]:
            raise BadInput(
                f"{where}: expected lists of one length, found {lengths['min']} to "
                f"{lengths['max']}; save the map as a full array."
            )
        shape.append(lengths["max"])
        cell = cell.flatten()
    if not shape or not (pa.types.is_floating(cell.type) or pa.types.is_integer(cell.type)):
        raise BadInput(
            f"{where}: expected a nested list of numbers, found {cell.type}; use a data set whose "
            "maps are arrays."
        )
    return cell.to_numpy(zero_copy_only=False).reshape(shape)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # pyarrow raises OSError and several of its own
        raise BadInput(
            f"{file}: cannot be read as parquet ({_reason(error)}); copy it again."
        ) from error
