"""The documentation as data: the code blocks of its pages, the commands in its text, and its links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from command_runs import dptrain_here

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [
    CHECKOUT / "README.md",
    *sorted((CHECKOUT / "docs").glob("*.md")),
    CHECKOUT / "examples" / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
]
ONE_PROGRAM = "<!-- The Python blocks of this page are one program"
RUN, APPLIED, SHOWN = {"bash", "python"}, {"toml", "diff"}, {"text"}

FENCE = re.compile(r"^```(\w*)$")
NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
FILE_NAME = re.compile(r"^# ([\w./-]+\.(?:py|toml))\b")
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
PROGRAMS = ("dptrain ", "python ", "mpirun ", "bash ", "pip ", "sbatch ", "srun ", "salloc ", ".venv/bin/")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and why the tests do not run it ("" if they run it)."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"

    @property
    def file(self) -> str:
        """The file name in the first line of the block: `# my_net.py`."""
        found = FILE_NAME.match(self.text)
        return found[1] if found else ""

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block."""
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language = 0, None
    for number, line in enumerate(lines, 1):
        fence = FENCE.match(line)
        if fence and language is None:
            start, language = number, fence[1]
        elif fence and language is not None:
            reason = NOT_RUN.match(lines[start - 2]) if start > 1 else None
            text = "".join(f"{inner}\n" for inner in lines[start : number - 1])
            found.append(Block(page, start, language, text, reason[1] if reason else ""))
            language = None
    assert language is None, f"{page}:{start}: this block has no end"
    return found


def typed(page: Path) -> list[Block]:
    """The blocks that a reader types, in order. The Python blocks of a page that is one program are the first block.

    In it, each line has the number that it has on the page.
    """
    found = [block for block in blocks(page) if not block.not_run and block.language not in SHOWN]
    if ONE_PROGRAM not in page.read_text(encoding="utf-8"):
        return found
    parts = [block for block in found if block.language == "python"]
    text = ""
    for block in parts:
        text += "\n" * (block.line - text.count("\n")) + block.text
    return [Block(page, parts[0].line, "python", text, ""), *(block for block in found if block.language != "python")]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline_commands(page: Path) -> Iterator[list[str]]:
    """The words of each command in the text of a page, such as `dptrain train DATA`."""
    for text in INLINE.findall(prose(page)):
        if text.startswith(PROGRAMS):
            yield shlex.split(text)


@cache
def help_of(*program: str) -> str:
    """The output of `dptrain` with these words for --help."""
    done = dptrain_here(*program, "--help", cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_command(words: list[str]) -> None:
    """AssertionError unless the programs, commands, flags and files of a command line exist. It is not run."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    program = re.sub(r"^\.venv[\w-]*/bin/", "", words[0])
    if program == "dptrain":
        check_dptrain(words[1:])
    elif program == "python" and words[1:2] == ["-m"]:
        check_module(words[2], words[3:])
    elif program in ("python", "bash", "sbatch", "source"):
        script, arguments = script_of(words[1:])
        if script:
            assert (CHECKOUT / script).exists() or script == ".venv/bin/activate", f"{script}: no such file"
        if script == "launch/slurm.sh":
            check_dptrain(["train", *arguments])
    elif program in ("mpirun", "srun", "salloc"):
        if "dptrain" in words:
            check_command(words[words.index("dptrain") :])
    elif program == "pip":
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            text = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
            for name in extra.split(","):
                assert re.search(rf"^{name} = \[", text, re.MULTILINE), f"pyproject.toml has no extra {name}"
    else:
        assert program in ("git", "ssh", "python3"), f"{program}: a command that this test does not know"


def script_of(words: list[str]) -> tuple[str, list[str]]:
    """The script in the words after `bash` or `python`, and its arguments."""
    for position, word in enumerate(words):
        if word.endswith((".sh", ".py")) or "/" in word:
            return word, words[position + 1 :]
    return "", []


def check_module(module: str, arguments: list[str]) -> None:
    if module in ("launch", "data_prep"):
        check_dptrain([module.replace("data_", ""), *arguments])
    elif module == "dptrain":
        check_dptrain(arguments)
    elif module == "pytest":
        for word in arguments:
            assert not word.startswith("tests/") or (CHECKOUT / word).exists(), f"{word}: no such file"
    else:
        known = ("venv", "pip", "ruff", "mypy", "mpi4py", "pre_commit", "pdoc")
        assert module in known, f"{module}: not known to this test"


def check_dptrain(words: list[str]) -> None:
    """The same check for the words after `dptrain`."""
    if not words or words[0] in ("--help", "--version"):
        return
    command, *arguments = words
    program = [command]
    if command in ("bench", "prep", "data-prep") and arguments and not arguments[0].startswith("-"):
        program.append(arguments.pop(0))
    if command == "launch" and "--" in arguments:
        split = arguments.index("--")
        check_dptrain(arguments[split + 1 :])
        arguments = arguments[:split]
    known = set(FLAG.findall(help_of(*program)))
    for word in arguments:
        if FLAG.match(word):
            assert word.partition("=")[0] in known, f"dptrain {' '.join(program)} has no flag {word}"


def insert(diff: str, folder: Path) -> None:
    """Apply a diff block that only adds lines: `+++ FILE`, then lines of the file (" ...") and new ones ("+...")."""
    head, *lines = diff.splitlines()
    path = folder / head.removeprefix("+++ ")
    before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines)
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path.name}: found {text.count(before)} times, expected once:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
