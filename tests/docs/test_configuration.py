"""The reference of the configuration agrees with the code; run as a program, this file writes it."""

from __future__ import annotations

from dataclasses import MISSING, fields

from documents import CHECKOUT

from dptrain.config.train import SUBJECTS
from dptrain.system.keys import Scope

PAGE = CHECKOUT / "docs" / "configuration.md"
HEAD = "<!-- PYTHONPATH=tests python tests/docs/test_configuration.py writes the rest of this page. -->\n"
SCOPES = {
    Scope.RUN: "must stay",
    Scope.BITS: "changes the results",
    Scope.FOLDER: "of the folder",
    Scope.PROCESS: "free",
}


def reference() -> str:
    """The tables of all keys, one for each subject."""
    text = ""
    for subject in SUBJECTS:
        title = str(subject.__doc__).capitalize()
        text += f"\n## {title}\n\n| key | default | meaning | on resume |\n| --- | --- | --- | --- |\n"
        for key in fields(subject):
            default = "" if key.default in ("", MISSING) else f"`{key.default}`".lower()
            meaning = key.metadata["help"].replace("<", "&lt;")
            if "choices" in key.metadata:
                meaning += " (" + ", ".join(f"`{choice}`" for choice in key.metadata["choices"]) + ")"
            if "example" in key.metadata:
                meaning += f", such as `{key.metadata['example']}`"
            cells = f"`{key.name.replace('_', '-')}`", default, meaning, SCOPES[key.metadata["scope"]]
            text += ("| " + " | ".join(cells) + " |\n").replace("|  |", "| |")
    return text


def test_the_reference_has_every_key_with_its_default_and_meaning() -> None:
    written = PAGE.read_text(encoding="utf-8").partition(HEAD)[2]
    assert written == reference(), "run: PYTHONPATH=tests python tests/docs/test_configuration.py"


if __name__ == "__main__":
    before, head, _ = PAGE.read_text(encoding="utf-8").partition(HEAD)
    PAGE.write_text(before + head + reference(), encoding="utf-8")
