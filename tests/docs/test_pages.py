"""Every code block and command of the documentation works, and every link leads somewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from data_sets import binary_members, write_archive, write_idx_files
from documents import (
    APPLIED,
    CHECKOUT,
    LINK,
    PAGES,
    RUN,
    SHOWN,
    Block,
    anchors,
    blocks,
    check_command,
    insert,
    prose,
    typed,
)
from documents import inline_commands as commands_in_text

from data_prep.pack import pack
from data_prep.sources.shapes import read_shapes
from dptrain.config.files import read_toml

PARTS = ("dptrain", "data_prep", "launch", "tests", "examples", "pyproject.toml", "README.md", "LICENSE")
SECONDS = 120

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set under the name that the pages use."""
    folder = tmp_path_factory.mktemp("small")
    pack(folder / "data" / "cifar10", read_shapes(folder, 320, 80), shards=8)
    return folder


def archive(folder: Path) -> None:
    """An archive of the same size as the published one, with few images that repeat."""
    members = {
        name: content if name.endswith(".txt") else content * 1000 for name, content in binary_members(10).items()
    }
    write_archive(folder / "cifar-10-binary.tar.gz", members)


@pytest.fixture
def reader(page: Path, small_data: Path, tmp_path: Path) -> Callable[[Block], None]:
    """Acts like a reader in a copy of the checkout: types a block, or saves it as a file."""
    text = page.read_text(encoding="utf-8")
    for name in PARTS:  # with their compiled files, so that the processes of every page do not compile them again
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, tmp_path / name, symlinks=True)
        elif (CHECKOUT / name).exists():
            shutil.copy(CHECKOUT / name, tmp_path)
    if "prep cifar10 data/cifar10" not in text:  # otherwise the page packs it
        shutil.copytree(small_data / "data", tmp_path / "data")
    if "cifar-10-binary.tar.gz" in text:
        archive(tmp_path)
    for folder in ("mnist", "fashion"):
        if f"./{folder} " in text:
            write_idx_files(tmp_path / folder)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }

    def follow(block: Block) -> None:
        if block.language == "diff":
            insert(block.text, tmp_path)
            return
        if block.file:
            path = tmp_path / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        if block.language == "toml":
            read_toml(tmp_path / block.file)
        elif block.language == "bash":
            run(block, ["bash", "-euo", "pipefail", "-c", block.text])
        elif block.language == "python" and not block.file.startswith(("dptrain/", "data_prep/", "launch/")):
            run(block, [sys.executable, *([block.file] if block.file else ["-c", block.text])])

    def run(block: Block, command: list[str]) -> None:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{block.place} ended with status {done.returncode}:\n{block.text}\n{done.stdout}"

    return follow


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.once
@each_page
def test_the_blocks_of_a_page_work_when_typed_in_order(page: Path, reader: Callable[[Block], None]) -> None:
    for block in typed(page):
        reader(block)


@each_page
def test_every_block_has_a_language_that_the_tests_know(page: Path) -> None:
    for block in blocks(page):
        assert block.language in RUN | APPLIED | SHOWN, f"{block.place}: ```{block.language}"
        assert block.language != "toml" or block.file, f"{block.place}: the first line must name the file: # NAME.toml"
    assert "\n\n    " not in prose(page), "an indented block, which no test would run; use ```"


@each_page
def test_commands_that_are_not_run_have_existing_flags_and_files(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash" and block.not_run:
            for words in block.commands():
                check_command(words)
    for words in commands_in_text(page):
        check_command(words)


@pytest.mark.parametrize(
    "command",
    [
        "dptrain train data --epoch-count 3",
        "dptrain launch -n 2 --sometimes -- train data",
        "mpirun -n 2 dptrain train data --nonsense",
        "python -m data_prep cifar10 data --speed 9",
        "bash launch/nowhere.sh",
        "sbatch --ntasks=8 launch/slurm.sh data --wrong",
        "pip install '.[nothing]'",
        "python -m pytest tests/nowhere.py",
        "unheard-of x",
    ],
)
def test_the_check_of_a_command_reports(command: str) -> None:
    block = Block(PAGES[0], 1, "bash", command, "an example")
    with pytest.raises(AssertionError):
        check_command(block.commands()[0])


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_readme_is_short_and_names_every_page() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    for page in PAGES[1:]:
        assert f"({page.relative_to(CHECKOUT)})" in text
