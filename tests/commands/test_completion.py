"""dptrain.commands.completion: the script completes in a real bash."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dptrain.commands.completion import SHELLS, complete_parser, script
from dptrain.commands.main import main
from dptrain.config.train import KEYS
from dptrain.system.keys import flag

# Completes the words of each line as the TAB key does, and prints the proposals on one line.
COMPLETES = """
source script.bash
complete_function=$(complete -p dptrain | sed 's/.*-F \\([^ ]*\\).*/\\1/')
while read -r line; do
    COMP_LINE=$line COMP_POINT=${#line}
    read -r -a COMP_WORDS <<<"$line"
    [[ $line != *: ]] || COMP_WORDS[-1]=""       # a colon stands for an empty last word
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    "$complete_function" dptrain "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "${COMPREPLY[@]}"
done
"""


def completed(folder: Path, *lines: str) -> list[list[str]]:
    """What bash proposes for the last word of each line."""
    (folder / "script.bash").write_text(script("bash"))
    command = ["bash", "--norc", "-c", COMPLETES]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_completes_commands_flags_and_choices(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "date.toml").touch()
    found = completed(
        tmp_path,
        "dptrain tr",
        "dptrain train --epo",
        "dptrain train data --schedule co",
        "dptrain train data --augment :",
        "dptrain launch --max",
        "dptrain prep sha",
        "dptrain data-prep sha",
        "dptrain bench uncon",
        "dptrain completion z",
        "dptrain train da",
        "dptrain train --config dat",
    )
    assert [sorted(words) for words in found] == [
        ["train"],
        ["--epochs"],
        ["constant", "cosine"],
        ["none", "reflect", "zero"],
        ["--max-restarts"],
        ["shapes"],
        ["shapes"],
        ["unconnected"],
        ["zsh"],
        ["data"],
        ["data", "date.toml"],
    ]


def test_every_flag_of_train_is_completed() -> None:
    text = script("bash")
    for name in KEYS:
        assert name == "data" or re.search(rf"{flag(name)}\b(?!-)", text)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_valid_for_its_shell(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)
    assert "dptrain" in path.read_text()
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", path], check=False).returncode == 0


def test_an_unknown_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fsh"]) == 2
    assert capsys.readouterr().err == "dptrain: error: shell is 'fsh'; known: bash, tcsh, zsh\n"


def test_the_complete_parser_accepts_the_same_words() -> None:
    parsed = complete_parser().parse_args(["train", "set", "--epochs", "3", "--quiet"])
    assert (parsed.epochs, parsed.quiet) == (3, True)
