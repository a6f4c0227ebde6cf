"""Who may import whom, read from the import lines."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "symerge_jax").rglob("*.py"))

# The library runs with jax, flax, optax, orbax, numpy and safetensors alone.
HEAVY = {
    "PIL",
    "datasets",
    "grain",
    "matplotlib",
    "rich",
    "scipy",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "torch",
    "transformers",
    "tyro",
}

# importer → what it may not import: the arrows of the data flow point one way. `merge`, `adapt`,
# `evaluate` and `second_moments` receive `apply(params, inputs)` and never know a network.
FORBIDDEN = {
    "notation": ("trees", "task_vectors", "merge", "adapt", "evaluate", "models", "checkpoints"),
    "trees": ("task_vectors", "merge", "adapt", "evaluate", "models", "checkpoints", "data"),
    "task_vectors": ("merge", "adapt", "evaluate", "models", "checkpoints", "data"),
    "metrics": ("merge", "adapt", "evaluate", "models", "checkpoints", "data"),
    "merge": ("adapt", "evaluate", "models", "checkpoints", "data", "cli"),
    "adapt": ("models", "checkpoints", "data", "cli"),
    "evaluate": ("merge", "adapt", "models", "checkpoints", "data", "cli"),
    "second_moments": ("adapt", "models", "checkpoints", "data", "cli"),
    "models": ("merge", "adapt", "evaluate", "checkpoints", "data", "cli"),
    "checkpoints": ("merge", "adapt", "evaluate", "data", "cli"),
    "data": ("merge", "adapt", "evaluate", "models", "checkpoints", "cli"),
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, *, top_level):
    """The modules that a file's import lines name; inside functions too unless `top_level`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in _top_level(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            # `from symerge_jax import merge` names the module symerge_jax.merge
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _top_level(node):
    """The statements that run on import: not in functions, nor for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _top_level(child)


every_library_file = pytest.mark.parametrize("path", LIBRARY, ids=map(module_name, LIBRARY))


@every_library_file
def test_the_library_never_imports_the_experiments(path):
    assert not [m for m in imports(path, top_level=False) if m.split(".")[0] == "experiments"]


@every_library_file
def test_heavy_packages_load_inside_functions(path):
    # A command is imported only to run it; tyro declares its options, rich draws its bars.
    commands = path.parent.name == "cli" and path.stem not in ("__init__", "errors")
    allowed = {"rich", "tyro"} if commands else set()
    assert not (HEAVY - allowed) & {m.split(".")[0] for m in imports(path, top_level=True)}


@every_library_file
def test_imports_point_one_way(path):
    part = (*module_name(path).split("."), "")[1]
    forbidden = FORBIDDEN.get(part, ())
    for module in imports(path, top_level=False):
        if module.startswith("symerge_jax."):
            target = module.split(".")[1]
            assert target not in forbidden, f"{part} imports {module}"


def test_every_public_name_has_a_home():
    import symerge_jax

    assert set(symerge_jax._HOMES) | {"__version__"} == set(symerge_jax.__all__)
    for name in symerge_jax.__all__:
        assert getattr(symerge_jax, name) is not None
        assert name in dir(symerge_jax)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        symerge_jax.nothing  # noqa: B018


def test_evaluate_stays_the_function_when_its_module_is_imported():
    import importlib

    import symerge_jax

    importlib.import_module("symerge_jax.evaluate")
    assert callable(symerge_jax.evaluate)


def test_files_have_no_names_for_not_having_decided():
    names = {path.stem for path in [*LIBRARY, *(ROOT / "experiments").rglob("*.py")]}
    assert not [name for name in names if re.fullmatch(r"_?(utils?|common|helpers?|misc)", name)]
