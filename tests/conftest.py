"""Strict settings for every test: CPU, no silent promotion of ranks or dtypes, checked shapes."""

import functools
import importlib.util
import os
from pathlib import Path

import as_given

# Before jax is imported: tests are small, and an accelerator may be busy or absent. Those marked
# `gpu` take back both of these settings; see `pytest_configure`.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Nearly all of a test's time goes into compiling programs that run for milliseconds: they are left
# unoptimised, and made by the older code generator, which takes a third of the time of the new one.
# Commands that tests start as processes do the same; what the environment says wins.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false",
        os.environ.get("XLA_FLAGS", ""),
    )
)

if importlib.util.find_spec("beartype"):
    # The axis names in signatures are checked here only; real runs do not pay for it.
    from jaxtyping import install_import_hook

    install_import_hook("symerge_jax", "beartype.beartype")

import jax
import optax
import pytest

# These mix Python floats with integer step counts in their updates, which strict promotion refuses.
_RELAXED = ("adam", "adamw", "sgd", "scale_by_adam", "scale_by_schedule", "scale_by_learning_rate")


def _relaxed(make):
    @functools.wraps(make)
    def made(*args, **kwargs):
        transformation = make(*args, **kwargs)

        def update(*update_args, **update_kwargs):
            with jax.numpy_dtype_promotion("standard"):
                return transformation.update(*update_args, **update_kwargs)

        return transformation._replace(update=update)

    return made


for _name in _RELAXED:
    setattr(optax, _name, _relaxed(getattr(optax, _name)))


# Tests make the same small programs again and again, each worker for itself; one folder for all of
# them saves most of the time of a run. What cannot be stored is compiled again.
# The commands under test keep theirs in the same place, and nothing in the person's own cache.
_HOME = Path(__file__).parents[1] / ".pytest_cache" / "home"
os.environ["XDG_CACHE_HOME"] = str(_HOME)
jax.config.update("jax_compilation_cache_dir", str(_HOME / "symerge_jax" / "compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_configure(config):
    """Lets `-m gpu`, and nothing else, use a GPU: as JAX does by default, beside the CPU."""
    if not _for_gpu(config):
        return
    given = as_given.ENVIRONMENT
    for name in given:  # workers inherit the environment
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in given.items() if value is not None})
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers share the GPU
    platforms = given["JAX_PLATFORMS"] or None
    # The tests compare with the CPU.
    jax.config.update("jax_platforms", "cuda,cpu" if platforms == "cuda" else platforms)


def pytest_runtest_setup(item):
    """Skips what needs a GPU in other runs, and where JAX has none."""
    if item.get_closest_marker("gpu") and not (_for_gpu(item.config) and _has_gpu()):
        pytest.skip("needs a GPU that JAX can use, and to be run with python -m pytest -m gpu")


def _for_gpu(config):
    return config.option.markexpr.strip() == "gpu"


def _has_gpu():
    try:
        return jax.default_backend() == "gpu"
    except RuntimeError:  # JAX_PLATFORMS names what is not there
        return False


@pytest.fixture(autouse=True)
def strict_jax():
    """Dtypes and ranks are promoted where the code says so, and nowhere else."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny CLIP, experts, heads and images as files; see tiny_experts.py."""
    import tiny_experts

    return tiny_experts.made(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """Compiles what commands under test run quickly, and keeps it; see commands.py."""
    import commands

    with commands.separate(tmp_path_factory.getbasetemp()):
        yield
