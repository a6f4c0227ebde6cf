"""Damages files at random, byte by byte or part by part with checksums and lengths put right."""

from __future__ import annotations

import io
import json
import zipfile
from copy import deepcopy
from random import Random
from typing import Any

# What readers may stumble over, wherever a value stands.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 999_999, 2**31, 2**63, 10**400, -(2**64), 0.5, 1e308, float("nan"),
    float("inf"),
    "", "x", "0", "../../etc/passwd", "/", "\0", "\ud800", "é" * 300, "{}", "nan", [], {}, [[]],
    ["a", "a"], {"": ""}, [None], [0, 1], {"weight": None}, [[1]] * 3,
)  # fmt: skip
_WORDS = (b"", b"\0", b"\t", b'"', b"\n", b"[", b"]]", b"{", b"=", b"\xff\xfe", b"\xed\xa0\x80",
          b"nan", b"1e999", b"-1", b"99999999999999999999", b"'", b",,,", b"\r", b"# ",
          "\N{LINE SEPARATOR}".encode(), b"true", b"[[task]]\n", b"a = 1\n")  # fmt: skip
_SIZES = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**62, 2**63 - 1, 2**64 - 1)


def damaged(content: bytes, form: str, rng: Random) -> bytes:
    """Returns the content with a few things changed."""
    if form != "bytes" and rng.random() < 0.7:
        parts = {"json": _json, "text": _text, "zip": _zip, "safetensors": _safetensors}
        return parts[form](content, rng)
    return _bytes(content, rng)


def _bytes(content: bytes, rng: Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        match rng.choice(("flip", "set", "size", "cut", "drop", "insert", "double")):
            case "flip" if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case "set" if at < len(found):
                found[at] = rng.choice((0, 1, 0x2E, 0x80, 0xFF, rng.randrange(256)))
            case "size":
                length = rng.choice((2, 4, 8))
                size = rng.choice(_SIZES) % 256**length
                found[at : at + length] = size.to_bytes(length, rng.choice(("little", "big")))
            case "cut":
                del found[at:]
            case "drop":
                del found[at : at + rng.choice((1, 3, 50))]
            case "insert":
                found[at:at] = rng.choice(_WORDS)
            case "double":
                found[at:at] = found[at : at + rng.choice((1, 10, 100))]
    return bytes(found)


def _text(content: bytes, rng: Random) -> bytes:
    """Exchanges what stands between two marks."""
    found = content
    for _ in range(rng.choice((1, 1, 2))):
        lines = found.split(b"\n")
        at = rng.randrange(len(lines))
        marks = [m for m in (b"\t", b",", b" = ", b'"', b" ", b":") if m in lines[at]]
        if not marks or rng.random() < 0.2:
            lines[at] = rng.choice((b"", rng.choice(lines), rng.choice(_WORDS)))
        else:
            mark = rng.choice(marks)
            fields = lines[at].split(mark)
            value = json.dumps(rng.choice(VALUES), ensure_ascii=rng.random() < 0.5)
            word = rng.choice((value.encode("utf-8", "surrogatepass"), rng.choice(_WORDS)))
            fields[rng.randrange(len(fields))] = word
            lines[at] = mark.join(fields)
        found = b"\n".join(lines)
    return found


def _json(content: bytes, rng: Random) -> bytes:
    """Exchanges, removes or renames nodes of a document."""
    found = [json.loads(content)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        parents = [found]
        for parent in parents:
            children = parent.values() if isinstance(parent, dict) else parent
            parents += [child for child in children if isinstance(child, dict | list) and child]
        parent = rng.choice(parents)
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = rng.choice(keys)
        action = rng.random()
        if action < 0.15 and parent is not found:
            del parent[key]
        elif action < 0.3 and isinstance(parent, dict):
            parent[rng.choice(("", "x", "a/b", "é" * 40, rng.choice(keys)))] = parent.pop(key)
        else:
            parent[key] = deepcopy(rng.choice(VALUES))
    return json.dumps(found[0], ensure_ascii=True).encode()


def _zip(content: bytes, rng: Random) -> bytes:
    """Damages one member, with its checksum put right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    if name.endswith(".npy") and rng.random() < 0.6:
        members[name] = _npy(members[name], rng)
    elif rng.random() < 0.1:
        del members[name]
    else:
        members[name] = _bytes(members[name], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return buffer.getvalue()


def _npy(content: bytes, rng: Random) -> bytes:
    """Exchanges shape or dtype in the header of an array."""
    length = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + length].decode(), content[10 + length :]
    start = header.index("'shape'")
    shape = rng.choice(
        ("()", "(0,)", "(-1,)", "(10**9,)", "(1000000000000,)", "(4294967296, 4294967296)",
         "(2, 2)", "(2, 9, 8)", "(1, 1, 1, 3)", "(2, 0, 8, 3)", "7", "None")
    )  # fmt: skip
    if rng.random() < 0.6:
        header = f"{header[:start]}'shape': {shape}, }}"
    else:
        kind = rng.choice(("|O", "<f8", "<i8", "<U9", "|V3", "<c8", "|b1", "<M8[s]", "x", "<i4"))
        header = f"{{'descr': '{kind}', {header[header.index(chr(39) + 'fortran') :].strip()}"
    header = header.ljust(length) + "\n"
    return content[:8] + len(header).to_bytes(2, "little") + header.encode() + data


def _safetensors(content: bytes, rng: Random) -> bytes:
    """Changes the header, with its length put right."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.3:
        tree = json.loads(header)
        tree.setdefault("__metadata__", {})["classes"] = json.dumps(rng.choice(VALUES))
        header = json.dumps(tree).encode()
    else:
        header = _json(header, rng)
    return len(header).to_bytes(8, "little") + header + data
