"""The names in a pickle, and what becomes of a call to one: a real value, a stub, or a refusal.

A name is a `Global`, two strings. The few that checkpoints are built of (ordered dicts, sets,
bytes) have a function here; every other class or function becomes a `Stub` that remembers what it
was to be made of, and nothing of it is imported or run. A file that asks to call what no checkpoint
needs (a shell, an import, the network) is refused as a whole, though it could do no harm here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Modules nothing of which may be called: they run programs, import, reach the network or files.
_MODULES = """
_asyncio _ctypes _frozen_importlib _frozen_importlib_external _functools _imp _io _operator _pickle
_posixsubprocess _socket _thread _winapi asyncio atexit bdb builtins cProfile code codeop commands
concurrent ctypes dill distutils doctest ensurepip ftplib functools gc http imp importlib io joblib
linecache marshal multiprocessing nt ntpath operator os pdb pickle pickletools pip pkgutil posix
posixpath profile pty pydoc requests runpy setuptools shelve shutil signal site smtplib socket
sqlite3 ssl subprocess sys tarfile telnetlib tempfile threading timeit trace types unittest urllib
venv webbrowser xmlrpc zipfile zipimport
"""
REFUSED_MODULES = frozenset(_MODULES.split())
# Loaders of other files, and known ways to run text, within libraries that are otherwise welcome.
REFUSED_NAMES = (
    "numpy.f2py",
    "numpy.load",
    "numpy.testing",
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.package",
    "torch.serialization.load",
    "torch.utils.cpp_extension",
)
# Data all the same: they become stubs like the classes of any other module.
_BUILTINS = "bool bytearray complex dict float int list object range slice str tuple xrange"
DATA_NAMES = frozenset(
    ["functools.partial", "types.SimpleNamespace"]
    + [f"builtins.{name}" for name in _BUILTINS.split()]
)


class Unreadable(Exception):
    """Why a file cannot be used: the sentence that follows its name."""


class Malformed(Unreadable):
    """The bytes are no pickle, or only the beginning of one: a clause."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class, function or constant in a pickle. Nothing is looked up behind it."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


@dataclass(eq=False, slots=True, repr=False)
class Stub:
    """What the pickle wanted made, not made: the callee's name and everything it was given.

    Attributes:
        of: the class or function.
        args, kwargs: of the call, or of `__new__`.
        state: what `__setstate__` or the attributes were to be set from; None without.
        entries: appended or added to it, as to a list or set.
        items: set on it, as on a dict.
    """

    of: Global
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    entries: list[Any] = field(default_factory=list)
    items: dict[Any, Any] = field(default_factory=dict)

    def attributes(self) -> dict[Any, Any]:
        """The state as {name: value}, slots included; empty where it has another form."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}

    def __repr__(self) -> str:
        return f"<stub of {self.of}>"


# A machine's way to call, and the functions it may call: (call, arguments) → value.
Call = Callable[..., object]
Calls = Mapping[str, Callable[[Call, tuple[Any, ...]], object]]


def is_refused(function: Global) -> bool:
    """Whether calling this name marks a file as hostile."""
    name, path = str(function), function.qualname.split(".")
    if name in DATA_NAMES:
        return False
    owners = [function.module.split(".")[0], *path[:-1]]  # as in torch.serialization, "os.system"
    return (
        any(owner in REFUSED_MODULES for owner in owners)
        or any(part.startswith("__") and part.endswith("__") for part in path)
        or any(f"{name}.".startswith(f"{refused}.") for refused in REFUSED_NAMES)
    )


def refusal(name: object) -> Unreadable:
    """The error for a file that asks to call `name`."""
    return Unreadable(
        f"the pickle asks to call {printable(name)}; nothing was run; no checkpoint needs that, so "
        "open the file with no other program and get it again from a source you trust."
    )


def printable(text: object, limit: int = 100) -> str:
    """The text on one line without control characters, cut to `limit`: names come from the file."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}…"


def hashable(value: Any, depth: int = 2) -> Any:
    """Returns the value if it may be a dictionary key: a tuple hashes all that it holds.

    Raises:
        Malformed: it is a container, or a tuple too large or too deeply nested.
    """
    if isinstance(value, tuple):
        if depth == 0 or len(value) > 1000:
            raise Malformed("a dictionary key is too large")
        for part in value:
            hashable(part, depth - 1)
    elif isinstance(value, list | dict | set):
        raise Malformed("a dictionary key is a container")
    return value


def pairs_to_dict(keys: list[Any], values: list[Any]) -> dict[Any, Any]:
    """Returns {key: value} with keys that are fit to be keys."""
    if len(keys) != len(values):
        raise Malformed("a dictionary has a key without a value")
    return {hashable(key): value for key, value in zip(keys, values, strict=True)}


# --- what is made for real ----------------------------------------------------------------------


def _dict(call: Call, args: tuple[Any, ...]) -> object:
    match args:
        case ():
            return {}
        case (dict() as items,):
            return dict(items)
        case (list() as pairs,) if all(isinstance(p, list) and len(p) == 2 for p in pairs):
            return pairs_to_dict([p[0] for p in pairs], [p[1] for p in pairs])  # Python 2's
    raise Malformed("it makes a dictionary from unknown parts")


def _set(call: Call, args: tuple[Any, ...]) -> set[Any]:
    match args:
        case ():
            return set()
        case (list() | tuple() as entries,):
            return {hashable(entry) for entry in entries}
    raise Malformed("it makes a set from what is no list")


def _encode(call: Call, args: tuple[Any, ...]) -> object:
    # How protocols 0 to 2 write bytes.
    match args:
        case (str() as text, "latin1" | "latin-1"):
            return text.encode("latin-1")
    return Stub(Global("_codecs", "encode"), args)


def _bytes(call: Call, args: tuple[Any, ...]) -> object:
    return Stub(Global("builtins", "bytes"), args) if args else b""  # b"" in protocols 0 to 2


def _getattr(call: Call, args: tuple[Any, ...]) -> object:
    # Protocols below 4 write nested classes and some enums as getattr(class, name).
    match args:
        case (Global() as owner, str() as name) if name.isidentifier():
            found = Global(owner.module, f"{owner.qualname}.{name}")
            if not is_refused(owner) and not is_refused(found):
                return found
        case (Stub(), str() as name) if name.isidentifier() and not name.startswith("__"):
            return Stub(Global("builtins", "getattr"), args)  # a bound method
    raise refusal("builtins.getattr")


def _type(call: Call, args: tuple[Any, ...]) -> object:
    if args != (None,):  # how the type of None is written
        raise refusal("builtins.type")
    return Stub(Global("builtins", "type"), args)


def _reconstructor(call: Call, args: tuple[Any, ...]) -> object:
    # Objects in protocols 0 and 1: class, built-in base, what the base is made from.
    match args:
        case (kind, Global(), None):
            return call(kind, ())
        case (kind, Global(), dict() as items):
            made = call(kind, ())
            if isinstance(made, Stub):
                made.items.update(items)
            return made
        case (kind, Global(), content):
            return call(kind, (content,))
    raise Malformed("it rebuilds an object from unknown parts")


def _new_object(call: Call, args: tuple[Any, ...]) -> object:
    return call(args[0], args[1:])


SAFE_CALLS: Calls = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda call, args: {},
    "builtins.set": _set,
    "builtins.frozenset": lambda call, args: frozenset(_set(call, args)),
    "builtins.bytes": _bytes,
    "builtins.getattr": _getattr,
    "builtins.type": _type,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _new_object,
}
