"""Writes text tasks for tests."""


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_task(folder, header="sentence\tlabel", train=("a\t0", "b\t1"), dev=("c\t1", "d\t0")):
    write(folder / "train.tsv", header, *train)
    write(folder / "dev.tsv", header, *dev)
