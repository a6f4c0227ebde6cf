"""HTML written as function calls, so that no string reaches a page unescaped.

`element("p", "a < b")` gives `<p>a &lt; b</p>`. Only what these functions made, an `Html`, is taken
as markup; every other string, in content and in attributes, is text.
"""

import base64
import hashlib
import html
import json
from typing import Any

_EMPTY = frozenset({"br", "img", "link", "meta"})  # elements without content or end tag


class Html(str):
    """Text that is markup already. Plain `+` and formatting give text again, which is escaped."""

    __slots__ = ()


def element(name: str, /, *content: str, **attributes: str | int | float | bool | None) -> Html:
    """Returns `<name attributes>content</name>`.

    Args:
        name: of the element.
        content: text, escaped here, or `Html`.
        attributes: `class_` stands for `class` and `data_value` for `data-value`; True gives an
            attribute without a value, None and False none at all.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        assert not content, f"<{name}> has no content"
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(*content)}</{name}>")


def joined(*content: str) -> Html:
    """Returns pieces one after the other, those that are text escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in content))


def json_block(value: Any, *, name: str) -> Html:
    """Returns a script element that holds data and is never executed.

    Args:
        value: anything strict JSON can hold.
        name: the element's id.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Inside a script only `</script` and `<!--` mean anything, and entities mean nothing.
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return element("script", Html(text), type="application/json", id=name)


def source_hash(text: str) -> str:
    """Returns how a Content-Security-Policy names an inline script or style: `'sha256-…'`."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def png_uri(png: bytes) -> str:
    """Returns a picture as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
