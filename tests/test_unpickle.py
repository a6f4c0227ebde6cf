"""The pickle machine: data comes out as it went in, everything else stays a name."""

import argparse
import collections
import contextlib
import datetime
import enum
import functools
import importlib
import io
import operator
import os
import pathlib
import pickle
import random
import runpy
import shutil
import subprocess
import sys
import types
import webbrowser
from fractions import Fraction

import numpy as np
import pytest

from symerge_jax.checkpoints import unpickle
from symerge_jax.checkpoints.byte_reader import ByteRange, Reader
from symerge_jax.checkpoints.pickle_names import Global, Malformed, Stub, Unreadable
from symerge_jax.checkpoints.unpickle import OPERATIONS, load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


def read(content, **options):
    return load(Reader(io.BytesIO(content), 0, len(content), content), **options)


def again(value, protocol):
    return read(pickle.dumps(value, protocol))


class Plain:
    def __init__(self):
        self.number, self.names = 3, ["a"]


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self):
        self.left, self.right = 1, 2


class Rows(list):
    pass


class Table(dict):
    pass


class WithArguments:
    def __new__(cls, *args, **options):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (1, "two"), {"three": 3}


class Outer:
    class Mode(enum.Enum):
        BICUBIC = "bicubic"


class Calls:
    """Pickles as a call, the way that hostile files are made."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


# --- data ---------------------------------------------------------------------------------------

DATA = [
    None,
    True,
    [0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63, -(2**63), 2**200, -(2**200)],
    [0.0, -1.5, 1e300, float("inf")],
    ["", "plain", "ümlaut ☃ 😀", "line\nbreak", "x" * 300, "y" * 70000, "\udc80"],
    [b"", b"bytes\x00\xff", b"z" * 300],
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    {"a": {"b": [1, (2, {"c": None})]}, 1: 2, (1, "x"): 3, 2.5: 4},
    {1, 2, 3},
    frozenset({"a", "b"}),
    list(range(3000)),
    {str(i): i for i in range(3000)},
]


@every_protocol
@pytest.mark.parametrize("value", DATA, ids=range(len(DATA)))
def test_plain_data_comes_out_as_it_went_in(value, protocol):
    made = again(value, protocol)
    assert made == value
    assert type(made) is type(value)


@every_protocol
def test_ordered_and_counting_dicts_become_dicts_in_order(protocol):
    value = collections.OrderedDict([("b", 1), ("a", 2)])
    value.extra = "the versions that state_dict() attaches"
    assert list(again(value, protocol).items()) == [("b", 1), ("a", 2)]
    assert again(collections.Counter("aab"), protocol) == {"a": 2, "b": 1}
    assert again(collections.defaultdict(list, x=[1]), protocol) == {"x": [1]}


@every_protocol
def test_what_is_shared_stays_shared(protocol):
    inner = [1]
    inner.append(inner)
    first, second = again([inner, inner], protocol)
    assert first is second
    assert first[1] is first


def test_the_old_opcodes_of_python_2():
    assert read(b"(lp0\nI1\naI01\naS'it\\'s'\naL5L\naF1.5\na.") == [1, True, "it's", 5, 1.5]
    assert read(b"(dp0\nVkey\np1\n(I1\nI2\nts.") == {"key": (1, 2)}
    pairs = b"ccollections\nOrderedDict\n((l(lS'a'\naI1\naatR."
    assert read(pairs) == {"a": 1}
    old_class = read(b"(i__main__\nThing\nb.".replace(b"b.", b"(dS'x'\nI1\nsb."))
    assert str(old_class.of) == "__main__.Thing"
    assert old_class.attributes() == {"x": 1}
    assert read(b"(c__main__\nThing\nI1\no.").args == (1,)


def test_a_discarded_value_is_gone():
    assert read(b"I1\nI2\n0.") == 1  # POP
    assert read(b"I1\n(I2\nI3\n1.") == 1  # POP_MARK
    assert read(b"I1\n(0.") == 1  # POP of a mark
    assert read(b"]2\x86.") == ([], [])  # DUP


def test_long_bytes_stay_in_the_file():
    content = pickle.dumps({"a": b"x" * 5000, "b": bytearray(b"y" * 5000), "c": b"short"}, 5)
    made = read(content)
    for name, letter in (("a", b"x"), ("b", b"y")):
        assert isinstance(made[name], ByteRange)
        assert content[made[name].start :][: made[name].length] == letter * 5000
    assert made["c"] == b"short"


def test_a_reader_stops_behind_each_pickle():
    reader = Reader(io.BytesIO(pickle.dumps(1) + pickle.dumps("two", 2) + b"rest"), 0, 10_000)
    assert [load(reader), load(reader)] == [1, "two"]
    assert reader.take(4) == b"rest"


# --- stubs --------------------------------------------------------------------------------------


@every_protocol
def test_an_object_becomes_a_stub_with_its_attributes(protocol):
    made = again(Plain(), protocol)
    assert isinstance(made, Stub)
    assert made.of == Global(__name__, "Plain")
    assert made.attributes() == {"number": 3, "names": ["a"]}


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])
def test_slots_are_attributes_too(protocol):
    assert again(Slotted(), protocol).attributes() == {"left": 1, "right": 2}


@every_protocol
def test_subclasses_of_containers_keep_what_they_hold(protocol):
    rows, table = Rows([1, 2]), Table(a=1)
    made = again(rows, protocol)
    assert made.entries or made.args == ([1, 2],)
    assert again(table, protocol).items == {"a": 1}
    assert again(collections.deque([1, 2]), protocol).of == Global("collections", "deque")


@pytest.mark.parametrize("protocol", PROTOCOLS[4:])
def test_arguments_of_new_are_kept(protocol):
    made = again(WithArguments(), protocol)
    assert (made.args, made.kwargs) == ((1, "two"), {"three": 3})


@every_protocol
def test_an_enum_member_keeps_its_value_or_its_name(protocol):
    made = again(Outer.Mode.BICUBIC, protocol)
    found = made.args[0] if isinstance(made, Stub) else made.qualname
    assert "bicubic" in found.lower()
    name = made.of.qualname if isinstance(made, Stub) else made.qualname
    assert name.startswith("Outer.Mode")


HARMLESS = [
    functools.partial(os.path.join, "a"),
    types.SimpleNamespace(a=1),
    argparse.Namespace(lr=1e-5, path="x"),
    pathlib.PurePosixPath("a/b"),
    datetime.datetime(2020, 1, 1),
    Fraction(1, 3),
    complex(1, 2),
    bytearray(b"abc"),
    slice(1, 2, None),
    range(3),
    type(None),
    np.float32(1.5),
    np.arange(3),
    np.dtype("float32"),
    random.Random(0),
    print,  # only named, not called
    subprocess.run,
]


@every_protocol
@pytest.mark.parametrize("value", HARMLESS, ids=lambda value: type(value).__name__)
def test_objects_of_usual_libraries_pass_as_stubs(value, protocol):
    made: dict[str, None] = {}
    content = pickle.dumps({"weights": 1, "other": value}, protocol)
    assert read(content, made=made)["weights"] == 1


def test_the_names_of_stubs_are_listed_once():
    made: dict[str, None] = {}
    read(pickle.dumps([Plain(), Plain(), Table()]), made=made)
    assert list(made) == [f"{__name__}.Plain", f"{__name__}.Table"]


def test_nothing_is_imported():
    assert "antigravity" not in sys.modules
    made = read(b"\x80\x04\x8c\x0bantigravity\x8c\x04Baz.\x93)R.")
    assert str(made.of) == "antigravity.Baz."
    assert "antigravity" not in sys.modules


def test_a_persistent_id_is_looked_up_by_the_caller_alone():
    content = b"\x80\x02X\x01\x00\x00\x00kQ."
    assert read(content, persistent=lambda identity: ("found", identity)) == ("found", "k")
    with pytest.raises(Unreadable, match="refers to data outside"):
        read(content)


# --- hostile files ------------------------------------------------------------------------------

HOSTILE = [
    (f"{os.name}.system", os.system, "touch x"),
    ("os.popen", os.popen, "touch x"),
    ("builtins.eval", eval, "1"),
    ("builtins.exec", exec, "1"),
    ("builtins.__import__", __import__, "os"),
    ("builtins.compile", compile, "1", "x", "eval"),
    ("builtins.globals", globals),
    ("subprocess.Popen", subprocess.Popen, ["touch", "x"]),
    ("subprocess.check_output", subprocess.check_output, "x"),
    ("operator.attrgetter", operator.attrgetter, "system"),
    ("operator.methodcaller", operator.methodcaller, "system"),
    ("importlib.import_module", importlib.import_module, "os"),
    ("runpy.run_path", runpy.run_path, "x"),
    ("shutil.rmtree", shutil.rmtree, "x"),
    ("webbrowser.open", webbrowser.open, "x"),
    ("builtins.getattr", getattr, os.path.join, "__globals__"),
    ("builtins.getattr", getattr, eval, "call"),
    ("builtins.type", type, "X", (), {}),
    ("sys.exit", sys.exit),
]


@every_protocol
@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case[0])
def test_a_call_of_what_runs_programs_is_refused_by_name(case, protocol):
    name, *call = case
    content = pickle.dumps({"weights": Calls(*call)}, protocol)
    with pytest.raises(Unreadable, match=f"asks to call {name}; nothing was run"):
        read(content)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'x'\ntR.",
        b"(cos\nsystem\nS'x'\no.",
        b"(S'x'\nios\nsystem\n.",
        b"\x80\x02cos\nsystem\nU\x01x\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85}\x92.",
        b"ccopyreg\n__newobj__\n(cos\nsystem\nS'x'\ntR.",
        b"ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
        b"ctorch.serialization\nos.system\n(S'x'\ntR.",
        b"c__builtin__\ngetattr\n(ctorch.serialization\nos\nS'system'\ntR(S'x'\ntR.",
        b"ctorch\nhub.load\n(S'x'\ntR.",
        b"ctypes\nCodeType\n(I1\ntR.",
        b"c_functools\nreduce\n(I1\ntR.",
        b"c_pickle\nloads\n(S'x'\ntR.",
        b"ctorch.nn\nModule.__subclasses__\n(tR.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_no_opcode_and_no_detour_hides_a_call(content):
    with pytest.raises(Unreadable, match="asks to call"):
        read(content)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "ends in the middle"),
        (b"\x80", "ends in the middle"),
        (b".", "do not fit"),
        (b"0.", "do not fit"),
        (b"h\x05.", "do not fit"),  # nothing was memoised
        (b"t.", "do not fit"),
        (b"\x87.", "more than there is"),
        (b"I12", "middle of a line"),
        (b"S'x\n.", "no quotes"),
        (b"\x8e" + b"\xff" * 8 + b".", "ends in the middle"),  # 2**64 bytes
        (b"\x8d" + b"\x00" * 6 + b"\x01\x00.", "ends in the middle"),
        (b"\x8b\x00\x00\x00\x10" + b"1" * 50, "no model needs"),
        (b"\x8b\xff\xff\xff\xff.", "ends in the middle"),
        (b"I" + b"9" * 5000 + b"\n.", "too many digits"),
        (b"}]I1\ns.", "key is a container"),
        (b"}(I1\nu.", "key without a value"),
        (b"I1\nI2\na.", "appends to what is no list"),
        (b"I1\n(I2\nI3\nu.", "sets items"),
        (b"I1\n)R.", "no name"),
        (b"cfoo\nBar\nI1\nR.", "arguments"),
        (b"cbuiltins\nset\n(I5\ntR.", "no list"),
        (b"\x97.", "opcode"),
        (b"\xfe.", "opcode"),
        (b"I1\nI2\n\x93.", "name is no text"),
    ],
)
def test_what_is_no_pickle_is_named(content, why):
    with pytest.raises(Unreadable, match=why):
        read(content)


def test_every_opcode_of_python_but_out_of_band_buffers_is_known():
    import pickletools

    known = {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    assert known - set(OPERATIONS) == {b".", b"\x97", b"\x98"}


def test_a_memo_index_costs_nothing():
    assert read(b"]r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == []


def test_tuples_within_tuples_are_no_keys():
    doubled = b")" + b"2\x86" * 60  # hashing it would take 2**60 steps
    assert isinstance(read(doubled + b"."), tuple)
    with pytest.raises(Malformed, match="key is too large"):
        read(b"}" + doubled + b"I1\ns.")
    with pytest.raises(Malformed, match="key is too large"):
        read(b"\x8f(" + doubled + b"\x90.")


def test_nesting_has_no_limit():
    depth = 10_000
    made = read(b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (made,) = made
    assert made == []


def test_steps_are_counted(monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_OPCODES", 100)
    assert read(b"N0" * 49 + b"N.") is None
    with pytest.raises(Unreadable, match="more than 100 opcodes"):
        read(b"N0" * 50 + b"N.")


@every_protocol
def test_no_prefix_of_a_pickle_is_a_pickle(protocol):
    content = pickle.dumps({"a": [1, 2.5, "x" * 300], "b": Plain(), "c": {1, 2}}, protocol)
    for end in range(len(content)):
        with pytest.raises(Malformed):
            read(content[:end])


@every_protocol
def test_damage_is_never_another_error(protocol):
    content = pickle.dumps([Plain(), Table(a=1), np.arange(3), {"k": (1, b"x", 2.5)}], protocol)
    rng = np.random.default_rng(protocol)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(Unreadable):
            read(bytes(damaged))
