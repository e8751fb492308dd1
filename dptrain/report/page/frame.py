"""The frame of every page: head, style, header, links between the sections, script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime

import dptrain
from dptrain.report.page.markup import Html, element, fill, join, package_text


def page(kind: str, title: str, subtitle: str, links: Mapping[str, str], content: Html) -> str:
    """The HTML of a page. Its policy forbids every request and every script but its own."""
    script = "\n" + package_text("page.js") + "\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return fill(
        "page.html",
        kind=kind,
        title=title,
        subtitle=subtitle,
        links=join(element("li", element("a", text, href=f"#{name}")) for name, text in links.items()),
        content=content,
        version=dptrain.__version__,
        written=f"{datetime.now(UTC):%d %b %Y, %H:%M} UTC",
        policy=policy,
        style=Html(package_text("page.css")),
        script=Html(script[1:-1]),
    )
