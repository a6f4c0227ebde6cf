"""What a saved PyTorch object holds: its tensors by name, and what the classes of a module say.

The object is a state dict, a checkpoint with a state dict under one of the usual keys, or a module:
a stub whose state has `_parameters`, `_buffers` and `_modules`. Names and order are those of
`state_dict()`. The task-vector checkpoints are a wrapper module around open_clip's CLIP; their
activation and preprocessing are nowhere but in the classes and attributes of the pickled objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from symerge_jax.checkpoints.pickle_names import Global, Stub, Unreadable, printable
from symerge_jax.checkpoints.torch_tensors import UNUSUAL, Tensor

# Where training programs keep the weights, beside optimisers and counters.
USUAL_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network")
# Modules that hold each other would give names without end.
MAX_MODULES = 100_000
MAX_DEPTH = 100

ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
}
# PIL's numbers, which torchvision used before its own enum.
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class ModuleFacts(NamedTuple):
    """What the classes and attributes of a pickled module say, beside its tensors.

    Attributes:
        class_name: module and qualified name of the outermost class.
        activation: of the MLPs: 'quick_gelu', 'gelu' or 'gelu_tanh'; None without one.
        layer_norm_eps: of all LayerNorms; None without one.
        normalize: of a classification head, whether it normalises the features first.
        mean, std: of the pixel normalisation, per channel, in [0, 1] units.
        image_size: side of the square images, in pixels.
        interpolation: of resizing, such as 'bicubic'.
        classes: all classes and functions in the file that are not PyTorch's tensors; none was
            imported.
    """

    class_name: str
    activation: str | None = None
    layer_norm_eps: float | None = None
    normalize: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    interpolation: str | None = None
    classes: tuple[str, ...] = ()


def find_tensors(root: object) -> tuple[dict[str, Tensor], Stub | None]:
    """Returns the tensors by name, in `state_dict()`'s order, and the module they are in, if one.

    Raises:
        Unreadable: there are none, or one is of a kind that has no plain array.
    """
    found = _weights(root)
    module = found if isinstance(found, Stub) and _is_module(found) else None
    named = _of_module(module) if module is not None else _of_dict(_items(found) or {})
    tensors: dict[str, Tensor] = {}
    for name, value in named:
        if name in tensors:
            raise Unreadable(f"two tensors are named {printable(name)}.")
        tensors[name] = _plain(name, value)
    if not tensors:
        raise Unreadable(_nothing(root))
    return tensors, module


def module_facts(module: Stub, made: tuple[str, ...]) -> ModuleFacts:
    """Reads the facts of a module.

    Args:
        module: the outermost stub.
        made: names of all stubs in the file.

    Raises:
        Unreadable: its parts contradict each other.
    """
    parts = [part for _, part in _modules(module)]
    normalize = module.attributes().get("normalize")
    return ModuleFacts(
        str(module.of),
        _the_one("activation", [_activation(part) for part in parts]),
        _the_one("LayerNorm epsilon", [_epsilon(part) for part in parts]),
        normalize if isinstance(normalize, bool) else None,
        **_preprocessing(module),
        classes=made,
    )


# --- tensors ------------------------------------------------------------------------------------


def _weights(root: object) -> object:
    """The state dict or module in a checkpoint, or the object itself."""
    for _ in range(4):
        items = _items(root)
        if items is None:
            break
        inner = next((items[k] for k in USUAL_KEYS if k in items and _holds(items[k])), None)
        if inner is None:
            break
        root = inner
    return root


def _holds(value: object, depth: int = 3) -> bool:
    """Whether a value is a module, or a dict with tensors in it or under its usual keys."""
    items = _items(value)
    if items is None:
        return isinstance(value, Stub) and _is_module(value)
    return any(_is_tensor(entry) for entry in items.values()) or (
        depth > 0 and any(_holds(items[key], depth - 1) for key in USUAL_KEYS if key in items)
    )


def _items(value: object) -> dict[Any, Any] | None:
    if isinstance(value, Stub) and not _is_module(value) and value.items:
        return value.items  # a subclass of dict
    return value if isinstance(value, dict) else None


def _is_module(stub: Stub) -> bool:
    attributes = stub.attributes()
    return all(isinstance(attributes.get(name), dict) for name in ("_parameters", "_modules"))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Stub) and str(value.of) in UNUSUAL)


def _of_dict(items: dict[Any, Any]) -> Iterator[tuple[str, object]]:
    for name, value in items.items():
        if _is_tensor(value):
            yield _text(name), value
        elif _items(value) and any(map(_is_tensor, (_items(value) or {}).values())):
            raise Unreadable(
                f"{printable(name)} is a dict of tensors among tensors; expected one flat state "
                "dict: save model.state_dict()."
            )


def _of_module(module: Stub) -> Iterator[tuple[str, object]]:
    for prefix, part in _modules(module):
        attributes = part.attributes()
        unsaved = attributes.get("_non_persistent_buffers_set") or ()
        own = [*attributes["_parameters"].items()]
        own += [(k, v) for k, v in (attributes.get("_buffers") or {}).items() if k not in unsaved]
        yield from ((prefix + _text(name), value) for name, value in own if value is not None)


def _modules(module: Stub) -> Iterator[tuple[str, Stub]]:
    """A module and those in it as (prefix of names, stub), each before its children."""
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, part = waiting.pop()
        seen += 1
        if seen > MAX_MODULES or prefix.count(".") > MAX_DEPTH:
            raise Unreadable("its modules hold each other without end; save the state dict alone.")
        yield prefix, part
        children = part.attributes()["_modules"].items()
        for name, child in reversed(children):
            if child is None:
                continue
            if not isinstance(child, Stub) or not _is_module(child):
                raise Unreadable(
                    f"its module {printable(prefix)}{printable(name)} is "
                    f"{printable(type(child).__name__)}, which is no module; save the state dict."
                )
            waiting.append((f"{prefix}{_text(name)}.", child))


def _plain(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    what = UNUSUAL.get(str(value.of)) if isinstance(value, Stub) else None
    raise Unreadable(f"tensor {printable(name)} is {what or f'no tensor but {printable(value)}'}.")


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise Unreadable(f"a tensor is named {printable(name)}; expected a text.")
    return name


def _nothing(root: object) -> str:
    items = _items(root)
    if items:
        keys = ", ".join(printable(key, 30) for key in list(items)[:5])
        what = f"a dict with the keys {keys}"
    elif isinstance(root, Stub):
        what = f"an object of class {printable(root.of)}"
    else:
        what = f"one {type(root).__name__.lower()}"
    return (
        f"it holds no tensors by name but {what}; expected a state dict, one under "
        f"{', '.join(USUAL_KEYS[:3])}, or a module."
    )


# --- facts --------------------------------------------------------------------------------------


def _the_one(what: str, values: list[Any]) -> Any:
    found = sorted({value for value in values if value is not None})
    if len(found) > 1:
        raise Unreadable(
            f"its modules have more than one {what}: {', '.join(map(printable, found))}; expected "
            "the same everywhere."
        )
    return found[0] if found else None


def _activation(part: Stub) -> str | None:
    found = ACTIVATIONS.get(_class(part))
    if found == "gelu" and part.attributes().get("approximate", "none") == "tanh":
        return "gelu_tanh"
    return found


def _epsilon(part: Stub) -> float | None:
    attributes = part.attributes()
    eps = attributes.get("eps")
    is_norm = _class(part).startswith("LayerNorm") and "normalized_shape" in attributes
    return eps if is_norm and isinstance(eps, float) else None


def _class(stub: Stub) -> str:
    return stub.of.qualname.rsplit(".", 1)[-1]


def _preprocessing(module: Stub) -> dict[str, Any]:
    """The steps of the evaluation transform among the module's attributes."""
    attributes = module.attributes()
    transforms = [attributes.get("val_preprocess"), *attributes.values()]
    chosen = next((t for t in transforms if isinstance(t, Stub) and _class(t) == "Compose"), None)
    steps = chosen.attributes().get("transforms") if chosen is not None else None
    facts: dict[str, Any] = {}
    for step in steps if isinstance(steps, list) else ():
        if not isinstance(step, Stub):
            continue
        stated = step.attributes()
        if _class(step) == "Normalize":
            facts |= {"mean": _numbers(stated.get("mean")), "std": _numbers(stated.get("std"))}
        elif _class(step) == "CenterCrop":
            facts["image_size"] = _side(stated.get("size"))
        elif _class(step) == "Resize":
            facts.setdefault("image_size", _side(stated.get("size")))
            facts["interpolation"] = _interpolation(stated.get("interpolation"))
    return facts


def _numbers(value: object) -> tuple[float, ...] | None:
    if isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value):
        return tuple(map(float, value))
    return None


def _side(value: object) -> int | None:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) else None


def _interpolation(value: object) -> str | None:
    match value:
        case Stub(args=(str() as name,)):  # InterpolationMode("bicubic")
            return name.lower()
        case Stub(args=(int() as number,)) | (int() as number):  # PIL's
            return _INTERPOLATIONS.get(number)
        case Global(qualname=name):  # InterpolationMode.BICUBIC
            return name.rsplit(".", 1)[-1].lower()
    return None
