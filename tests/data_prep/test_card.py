"""data_prep.card: the facts of a data set as JSON and Markdown; and the class counts of `info`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from data_sets import image_data
from markdown_it import MarkdownIt

from data_prep import __main__ as program
from data_prep.card import card, markdown
from data_prep.pack import pack
from dptrain.data.manifest import Preparation, Provenance, read_manifest
from dptrain.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(tmp_path / "set", image_data(), shards=4, seed=3, command=["npz", "--from", "my file.npz", "--seed", "3"])
    return tmp_path / "set"


def tables(text: str) -> list[list[list[str]]]:
    """The cells of the tables of a Markdown text, as a reader sees them."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and before is not None and before.type in ("td_open", "th_open"):
            assert all(child.type in ("text", "text_special", "code_inline") for child in token.children or [])
            found[-1][-1].append("".join(child.content for child in token.children or []))
    return found


def test_a_card_has_the_facts_of_the_data_set(folder: Path) -> None:
    data, manifest = image_data(), read_manifest(folder)
    pixels = np.asarray(data.train.images) / 255
    found = card(folder, "CC BY 4.0")
    counts = [np.bincount(split.labels, minlength=5).tolist() for split in (data.train, data.test)]
    assert found["classes"] == [
        {"name": f"class-{number}", "train": counts[0][number], "test": counts[1][number]} for number in range(5)
    ]
    np.testing.assert_allclose(found["mean"], pixels.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(found["std"], pixels.std(axis=(0, 2, 3)))
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("*.h5"))
    assert found["manifest_sha256"] == manifest.sha256
    assert found["command"] == ["npz", "--from", "my file.npz", "--seed", "3", "--shards", "4"]
    facts = {name: found[name] for name in ("name", "license", "image_shape", "samples", "shards", "seed")}
    samples = {"train": 101, "test": 37}
    expected = {"name": "random", "license": "CC BY 4.0", "image_shape": [2, 5, 7], "samples": samples}
    assert facts == expected | {"shards": 4, "seed": 3}
    assert json.loads(json.dumps(found)) == found


def test_the_markdown_has_the_same_facts(folder: Path) -> None:
    facts = card(folder)
    text = markdown(facts)
    about, pixels, classes = tables(text)
    cells = dict(row for row in about[1:])
    assert (cells["licence"], cells["source"], cells["train samples"]) == ("not stated", "random", "101")
    assert cells["images"].startswith("2 x 5 x 7")
    assert cells["SHA-256 of the manifest"] == facts["manifest_sha256"]
    assert [float(row[1]) for row in pixels[1:]] == [round(value, 6) for value in facts["mean"]]
    assert [[one["name"], str(one["train"]), str(one["test"])] for one in facts["classes"]] == [
        row[1:] for row in classes[1:]
    ]
    assert "\ndptrain prep npz OUT --from 'my file.npz' --seed 3 --shards 4\n" in text


def test_a_card_has_the_validation_split_and_how_pictures_were_read(tmp_path: Path) -> None:
    preparation = Preparation("Pillow 1", "crop", broken=2, sizes=3, smallest=(5, 7), largest=(50, 70))
    data = replace(image_data(), preparation=preparation)
    manifest = pack(tmp_path / "set", data, shards=2, validation_fraction=0.2)
    facts = card(tmp_path / "set")
    samples = {split: manifest.samples(split) for split in ("train", "test", "validation")}
    assert facts["samples"] == samples
    assert {split: sum(one[split] for one in facts["classes"]) for split in samples} == samples
    assert facts["preparation"] == asdict(preparation)
    about, _, classes = tables(markdown(facts))
    assert classes[0] == ["label", "name", "train", "test", "validation"]
    cells = dict(row for row in about[1:])
    assert (cells["validation samples"], cells["decoder"]) == (str(samples["validation"]), "Pillow 1")
    assert cells["sizes of the pictures"] == "3, from 5 x 7 to 50 x 70 (height, width)"
    assert (cells["other aspect ratios"], cells["broken pictures left out"]) == ("crop", "2")


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Markup, HTML and table borders in names of classes, of the licence and of the archive stay text."""
    names = ("a|b", "*bold* _x_", "<b>&amp;</b>", "[link](http://x)", "`code` \\ ~~$é日")
    source = Provenance("x|y", "<i>.tar.gz", "0" * 64, published=False)
    pack(tmp_path / "set", replace(image_data(), classes=names, source=source), shards=2)
    text = markdown(card(tmp_path / "set", "CC|BY *4*"))
    about, _, classes = tables(text)
    assert [row[1] for row in classes[1:]] == list(names)
    cells = dict(row for row in about[1:])
    assert (cells["licence"], cells["source"]) == ("CC|BY *4*", "x|y")
    assert cells["archive"] == f"<i>.tar.gz, not a published archive, SHA-256 {'0' * 64}"


def test_a_data_set_with_problems_has_no_card(folder: Path) -> None:
    path = folder / "test-003-of-004.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no card of a data set with problems: .*test-003-of-004\.h5"):
        card(folder)


def test_the_card_is_printed_or_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        assert program.main(["card", str(folder), *words]) == 0
        return capsys.readouterr().out

    facts = card(folder, "MIT")
    assert run("--license", "MIT") == f"{markdown(facts)}\n"
    assert json.loads(run("--license", "MIT", "--json")) == facts
    assert run("--license", "MIT", "--output", "card.md") == "card.md: the card of random\n"
    assert Path("card.md").read_text() == f"{markdown(facts)}\n"
    assert json.loads(run("--license", "MIT", "--output", "card.json", "--json")) == facts
    assert json.loads(Path("card.json").read_text()) == facts


def test_a_card_that_cannot_be_written_is_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (
        ("card.txt", "expected a name that ends with .md or .json"),
        ("no/card.md", "cannot be written: No such"),
    ):
        assert program.main(["card", str(folder), "--output", str(tmp_path / name)]) == UsageError.status
        assert words in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["set"]  # noqa: PTH208


def test_info_counts_the_samples_of_each_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = " ".join(map(str, np.bincount(image_data().test.labels, minlength=5)))
    assert program.main(["info", str(folder)]) == 0
    assert f"  class counts    test: {counts} (labels read, hashes not checked)\n" in capsys.readouterr().out


def test_info_describes_a_data_set_whose_labels_cannot_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "test-003-of-004.h5").unlink()
    assert program.main(["info", str(folder), "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["class_counts"] is None
    assert "note: " in found.err
    assert "test-003-of-004.h5: the labels cannot be read: No such file" in found.err
