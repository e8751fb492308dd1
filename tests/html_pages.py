"""HTML pages for tests: a strict reader of the elements, attributes, tables and text of a page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

EMPTY = {"meta", "link", "img", "line", "path"}  # without an end tag


@dataclass(eq=False)
class Element:
    """An element with its children; a child that is text is a str."""

    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def all(self, name: str = "", **attributes: str) -> list[Element]:
        """The elements below of this name, with these attributes; `class_` is one of the classes."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if name in ("", child.name) and all(
                    value in child.attributes.get("class", "").split()
                    if key == "class_"
                    else child.attributes.get(key) == value
                    for key, value in attributes.items()
                ):
                    found.append(child)
                found += child.all(name, **attributes)
        return found

    def one(self, name: str = "", **attributes: str) -> Element:
        (found,) = self.all(name, **attributes)
        return found

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def table(self, caption: str) -> list[list[str]]:
        """The rows of the table with this caption, heads included."""
        (table,) = (one for one in self.all("table") if one.one("caption").text == caption)
        return [
            [cell.text for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")
        ]  # fmt: skip

    def curves(self, title: str) -> dict[str, dict[str, Any]]:
        """The curves of a chart by name, as the script of the page gets them."""
        (figure,) = (one for one in self.all("figure") if one.all("h3") and one.one("h3").text == title)
        data = json.loads(figure.one("script", type="application/json").text)
        return {one["name"]: one for one in data["curves"]}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in EMPTY:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in EMPTY
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(path: Path) -> Element:
    """The page; AssertionError unless every element is closed in order."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].name}> is not closed"
    return reader.root
