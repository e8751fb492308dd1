"""HTML in which all text is escaped, and templates that are filled with it."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence
from importlib.resources import files
from string import Template

from dptrain.system.text import shown

EMPTY_ELEMENTS = {"img", "line", "path", "col"}  # without an end tag, or with />
NUMBER = "number"  # the class of a cell with a number


class Html(str):
    """HTML. Any other text is escaped when it becomes part of HTML."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """A value as HTML; control characters become visible escapes."""
    return value if isinstance(value, Html) else Html(html.escape(shown(value)))


def join(parts: Iterable[object]) -> Html:
    return Html("".join(map(escaped, parts)))


def element(name: str, *children: object, **attributes: object) -> Html:
    """An element; `class_` and `aria_label` are the attributes class and aria-label. None leaves an attribute out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(shown(value, 1 << 20))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in EMPTY_ELEMENTS:
        return Html(f"<{name}{written} />")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def table(
    caption: object, head: Sequence[object], rows: Iterable[Sequence[object]], *, texts: Collection[int] = ()
) -> Html:
    """A table: the first cell of a row is its header, the others are numbers except in the columns `texts`."""
    kinds = [None if place == 0 or place in texts else NUMBER for place in range(len(head))]
    top = (element("th", cell, scope="col", class_=kind) for cell, kind in zip(head, kinds, strict=True))
    body = (
        element(
            "tr",
            element("th", first, scope="row"),
            *(element("td", cell, class_=kind or "text") for cell, kind in zip(rest, kinds[1:], strict=True)),
        )
        for first, *rest in rows
    )
    parts = element("thead", element("tr", *top)), element("tbody", *body)
    return scrolled(caption, element("table", element("caption", caption), *parts))


def scrolled(label: object, content: Html, kind: str = "") -> Html:
    """Something wide, which can be scrolled by itself, also with the keyboard; `kind` is a further class."""
    return element("div", content, class_=f"scroll {kind}".strip(), tabindex="0", role="region", aria_label=label)


def definitions(facts: Iterable[tuple[str, object]]) -> Html:
    """A list of names and values; values that are None are left out."""
    pairs = (element("div", element("dt", name), element("dd", value)) for name, value in facts if value is not None)
    return element("dl", *pairs, class_="facts")


def folded(summary: str, *children: object) -> Html:
    """Something that the reader can open."""
    return element("details", element("summary", summary), *children)


def missing_note(text: object) -> Html:
    """A paragraph in the place of something that is not there."""
    return element("p", text, class_="missing")


def package_text(name: str) -> str:
    """A file beside this module."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def fill(name: str, **values: object) -> Html:
    """The template of this name with the values, escaped unless they are HTML."""
    return Html(Template(package_text(name)).substitute({key: escaped(value) for key, value in values.items()}))
