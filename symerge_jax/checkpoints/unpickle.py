"""A pickle machine that cannot call: the opcodes of Python's pickle, with nothing imported or run.

Python's own unpickler imports what a file names and calls it; this one knows names only as text
(`pickle_names`) and calls nothing but the functions of a table. Opcodes as in the Python library's
pickletools, protocols 0 to 5.

Long byte strings stay in the file (`ByteRange`), which makes a checkpoint of gigabytes cheap to
open. Steps, numbers and dictionary keys are bounded, so that a small file cannot ask for much
memory or time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from symerge_jax.checkpoints.byte_reader import ByteRange, Reader
from symerge_jax.checkpoints.pickle_names import (
    SAFE_CALLS,
    Calls,
    Global,
    Malformed,
    Stub,
    Unreadable,
    hashable,
    is_refused,
    pairs_to_dict,
    refusal,
)

# Some ten seconds, and at most some 1.5 GB in use; large models need 1e5.
MAX_OPCODES = 20_000_000
# Enough for any number in a checkpoint, and few enough digits that Python will print it.
MAX_INTEGER_BYTES = 256
LAZY_BYTES = 1024  # shorter byte strings are read at once

# Python 2's names, which pickle writes in protocols 0 to 2.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}


def load(
    reader: Reader,
    calls: Calls | None = None,
    persistent: Callable[[object], object] | None = None,
    *,
    made: dict[str, None] | None = None,
) -> object:
    """Returns the object of one pickle, and leaves the reader behind its end.

    Args:
        reader: stands at the first opcode.
        calls: functions for dotted names, beside those of `SAFE_CALLS`.
        persistent: returns the object of a persistent id; None refuses those.
        made: receives the names of everything that became a stub.

    Raises:
        Malformed: this is no pickle, or not all of one.
        Unreadable: it asks to call what is refused, or for more than the bounds allow.
    """
    made = {} if made is None else made
    machine = _Machine(reader, {**SAFE_CALLS, **(calls or {})}, persistent, made)
    try:
        return machine.run()
    except (IndexError, KeyError, ValueError, OverflowError, struct.error) as error:
        raise Malformed("its opcodes do not fit together") from error


class _Machine:
    def __init__(
        self,
        reader: Reader,
        calls: Calls,
        persistent: Callable[[object], object] | None,
        made: dict[str, None],
    ):
        self.reader, self.calls, self.persistent, self.made = reader, calls, persistent, made
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        take = self.reader.take
        for _ in range(MAX_OPCODES):
            opcode = take(1)
            if opcode == b".":
                return self.stack.pop()
            operation = OPERATIONS.get(opcode)
            if operation is None:
                raise Malformed(f"it has the opcode {opcode!r}, which no checkpoint has")
            operation(self)
        raise Unreadable(
            f"its pickle has more than {MAX_OPCODES} opcodes, many times those of any model; save "
            "the state dict alone."
        )

    def call(self, function: object, args: object, kwargs: object = None) -> object:
        kwargs = {} if kwargs is None else kwargs
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise Malformed("it calls with arguments that are none")
        if isinstance(function, Stub):  # a class made by a call, as by cloudpickle
            return Stub(function.of, args, kwargs)
        if not isinstance(function, Global):
            raise Malformed("it calls what is no name")
        known = self.calls.get(str(function))
        if known is not None:
            return known(self.call, args)
        if is_refused(function):
            raise refusal(function)
        self.made[str(function)] = None
        return Stub(function, args, kwargs)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items


# --- values -------------------------------------------------------------------------------------


def _constant(value: object, machine: _Machine) -> None:
    machine.stack.append(value)


def _fresh(kind: Callable[[], object], machine: _Machine) -> None:
    machine.stack.append(kind())


def _number(layout: struct.Struct, machine: _Machine) -> None:
    machine.stack.append(layout.unpack(machine.reader.take(layout.size))[0])


def _text(layout: struct.Struct, decode: Callable[[bytes], object], machine: _Machine) -> None:
    (length,) = layout.unpack(machine.reader.take(layout.size))
    machine.stack.append(decode(machine.reader.take(length)))


def _byte_string(layout: struct.Struct, machine: _Machine) -> None:
    reader = machine.reader
    (length,) = layout.unpack(reader.take(layout.size))
    if length < LAZY_BYTES:
        machine.stack.append(reader.take(length))
    else:
        machine.stack.append(ByteRange(reader, reader.position, length))
        reader.skip(length)


def _long(layout: struct.Struct, machine: _Machine) -> None:
    (length,) = layout.unpack(machine.reader.take(layout.size))
    if length > MAX_INTEGER_BYTES:
        raise Unreadable(f"its pickle holds an integer of {length} bytes, which no model needs.")
    machine.stack.append(int.from_bytes(machine.reader.take(length), "little", signed=True))


def _line(decode: Callable[[bytes], object], machine: _Machine) -> None:
    machine.stack.append(decode(machine.reader.line()))


def _decimal(line: bytes) -> object:
    if line in (b"00", b"01"):
        return line == b"01"
    if len(line) > 2 * MAX_INTEGER_BYTES:
        raise Malformed("a number has too many digits")
    return int(line.rstrip(b"L"))


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Malformed("a string has no quotes")
    return line[1:-1].decode("unicode_escape")  # the bytes of Python 2, taken as latin-1


def _utf8(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


# --- containers ---------------------------------------------------------------------------------


def _mark(machine: _Machine) -> None:
    machine.marked.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _tuple(n: int, machine: _Machine) -> None:
    cut = len(machine.stack) - n
    if cut < 0:
        raise Malformed("it takes more than there is")
    machine.stack[cut:] = [tuple(machine.stack[cut:])]


def _collect(kind: Callable[[list[Any]], object], machine: _Machine) -> None:
    items = machine.since_mark()
    machine.stack.append(kind(items))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return pairs_to_dict(items[::2], items[1::2])


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, set):
        target.update(map(hashable, items))
    elif isinstance(target, list | Stub):
        (target.entries if isinstance(target, Stub) else target).extend(items)
    else:
        raise Malformed("it appends to what is no list")


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict | Stub):
        raise Malformed("it sets items of what is no dictionary")
    (target.items if isinstance(target, Stub) else target).update(_pairs(items))


def _last(n: int, change: Callable[[_Machine, list[Any]], None], machine: _Machine) -> None:
    items = machine.stack[-n:]
    del machine.stack[-n:]
    change(machine, items)


def _marked(change: Callable[[_Machine, list[Any]], None], machine: _Machine) -> None:
    change(machine, machine.since_mark())


# --- names and calls ----------------------------------------------------------------------------


def _named(module: str, qualname: str) -> Global:
    return Global(_RENAMED.get(module, module), qualname)


def _lines_named(reader: Reader) -> Global:
    module = reader.line().decode()
    return _named(module, reader.line().decode())


def _global(machine: _Machine) -> None:
    machine.stack.append(_lines_named(machine.reader))


def _stack_global(machine: _Machine) -> None:
    qualname, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise Malformed("a name is no text")
    machine.stack.append(_named(module, qualname))


def _reduce(machine: _Machine) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args)


def _new_object_ex(machine: _Machine) -> None:
    kwargs, args = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args, kwargs)


def _instance(machine: _Machine) -> None:
    found = _lines_named(machine.reader)
    args = tuple(machine.since_mark())
    machine.stack.append(machine.call(found, args))


def _object(machine: _Machine) -> None:
    function, *args = machine.since_mark()
    machine.stack.append(machine.call(function, tuple(args)))


def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Stub):
        target.state = state
    # All else keeps its value: attributes of an ordered dict (module versions) or of a tensor.


def _persistent(machine: _Machine) -> None:
    identity = machine.stack.pop()
    if machine.persistent is None:
        raise Unreadable("its pickle refers to data outside of it, which is not in this file.")
    machine.stack.append(machine.persistent(identity))


def _persistent_line(machine: _Machine) -> None:
    machine.stack.append(machine.reader.line().decode())
    _persistent(machine)


def _extension(machine: _Machine) -> None:
    raise refusal("a function of the copyreg extension registry")


# --- memo ---------------------------------------------------------------------------------------


def _put(index: Callable[[Reader], int], machine: _Machine) -> None:
    machine.memo[index(machine.reader)] = machine.stack[-1]


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(index: Callable[[Reader], int], machine: _Machine) -> None:
    machine.stack.append(machine.memo[index(machine.reader)])


def _index(reader: Reader) -> int:
    return int(reader.line()[:20])


def _byte(reader: Reader) -> int:
    return reader.take(1)[0]


def _word(reader: Reader) -> int:
    return int.from_bytes(reader.take(4), "little")


_U1, _U4, _U8, _I4 = (struct.Struct(layout) for layout in ("<B", "<I", "<Q", "<i"))

# Out-of-band buffers (97, 98) have no place in a file and stay unknown.
OPERATIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"N": partial(_constant, None),
    b"\x88": partial(_constant, True),
    b"\x89": partial(_constant, False),
    b")": partial(_constant, ()),
    b"]": partial(_fresh, list),
    b"}": partial(_fresh, dict),
    b"\x8f": partial(_fresh, set),
    b"J": partial(_number, _I4),
    b"K": partial(_number, _U1),
    b"M": partial(_number, struct.Struct("<H")),
    b"G": partial(_number, struct.Struct(">d")),
    b"\x8a": partial(_long, _U1),
    b"\x8b": partial(_long, _I4),
    b"I": partial(_line, _decimal),
    b"L": partial(_line, _decimal),
    b"F": partial(_line, float),
    b"S": partial(_line, _quoted),
    b"V": partial(_line, lambda line: line.decode("raw_unicode_escape")),
    b"X": partial(_text, _U4, _utf8),
    b"\x8c": partial(_text, _U1, _utf8),
    b"\x8d": partial(_text, _U8, _utf8),
    b"T": partial(_text, _I4, lambda content: content.decode("latin-1")),
    b"U": partial(_text, _U1, lambda content: content.decode("latin-1")),
    b"B": partial(_byte_string, _U4),
    b"C": partial(_byte_string, _U1),
    b"\x8e": partial(_byte_string, _U8),
    b"\x96": partial(_byte_string, _U8),
    b"\x85": partial(_tuple, 1),
    b"\x86": partial(_tuple, 2),
    b"\x87": partial(_tuple, 3),
    b"(": _mark,
    b"0": _pop,
    b"1": _Machine.since_mark,
    b"2": lambda machine: machine.stack.append(machine.stack[-1]),
    b"t": partial(_collect, tuple),
    b"l": partial(_collect, list),
    b"d": partial(_collect, _pairs),
    b"\x91": partial(_collect, lambda items: frozenset(map(hashable, items))),
    b"a": partial(_last, 1, _append),
    b"e": partial(_marked, _append),
    b"\x90": partial(_marked, _append),
    b"s": partial(_last, 2, _set_items),
    b"u": partial(_marked, _set_items),
    b"b": _build,
    b"R": _reduce,
    b"\x81": _reduce,  # NEWOBJ differs from a call only in what it would run
    b"\x92": _new_object_ex,
    b"i": _instance,
    b"o": _object,
    b"c": _global,
    b"\x93": _stack_global,
    b"Q": _persistent,
    b"P": _persistent_line,
    b"\x82": _extension,
    b"\x83": _extension,
    b"\x84": _extension,
    b"p": partial(_put, _index),
    b"q": partial(_put, _byte),
    b"r": partial(_put, _word),
    b"\x94": _memoize,
    b"g": partial(_get, _index),
    b"h": partial(_get, _byte),
    b"j": partial(_get, _word),
    b"\x80": lambda machine: machine.reader.skip(1),  # the protocol: all are read alike
    b"\x95": lambda machine: machine.reader.skip(8),  # a frame tells only how much to read ahead
}
