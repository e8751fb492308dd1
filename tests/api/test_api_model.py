"""dptrain.load and dptrain.Model: tensors by name, predictions, evaluation and files for other programs."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_runs import Trained, build
from command_runs import dptrain_here
from picture_files import encoded
from PIL import ExifTags, Image

from dptrain import DataSet, Run, load
from dptrain.api.images import pixels_of
from dptrain.data_prep.pictures.decode import Form, decode_file
from dptrain.errors import CheckpointError, DataError, UsageError


@pytest.fixture
def run(trained: Trained) -> Run:
    return trained()


def test_parameters_have_names_and_are_read_only(run: Run) -> None:
    model = run.load()
    shapes = {name: values.shape for name, values in model.parameters.items()}
    assert shapes == {
        "conv1.weight": (4, 1, 3, 3),
        "conv1.bias": (4,),
        "linear1.weight": (5, 4 * 3 * 3),
        "linear1.bias": (5,),
    }
    with pytest.raises(ValueError, match="read-only"):
        model.parameters["conv1.bias"][:] = 7
    with pytest.raises(TypeError, match="does not support item assignment"):
        model.parameters["conv1.bias"] = np.zeros(4)  # type: ignore[index]
    assert model.buffers == {}
    assert model.params_sha256 == run.result["params_sha256"]
    assert (model.step, model.config["epochs"], model.image_shape) == (14, 2, (1, 6, 7))
    assert len(model.layers) == 6


def test_probabilities_are_those_of_the_layers_by_hand(run: Run, api_data: Path) -> None:
    model, data = run.load(), DataSet(api_data)
    images, _ = data.arrays("test")
    facts, tensors = data.info(), model.parameters
    x = (images / 255 - facts["mean"][0]) / facts["std"][0]
    padded = np.pad(x[:, 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    maps = np.einsum("nhwij,oij->nohw", windows, tensors["conv1.weight"][:, 0]) + tensors["conv1.bias"][:, None, None]
    pooled = np.maximum(maps, 0)[:, :, :6, :6].reshape(len(x), 4, 3, 2, 3, 2).max(axis=(3, 5))
    logits = pooled.reshape(len(x), -1) @ tensors["linear1.weight"].T + tensors["linear1.bias"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(images), expected, atol=1e-5)
    assert model.predict(images) == [data.classes[number] for number in expected.argmax(axis=1)]


def test_an_evaluation_agrees_with_the_command(run: Run, api_data: Path, tmp_path: Path) -> None:
    found = run.load().evaluate(api_data, "train", predictions=True)
    assert found.predictions is not None
    assert found.predictions.confusion().shape == (5, 5)
    assert found.predictions.confusion().sum() == found.samples == 101
    assert repr(found.predictions) == f"<Predictions: 101 samples, accuracy {100 * found.accuracy:.2f} %>"
    assert found.predictions.correct == found.correct
    images, labels = DataSet(api_data).arrays("train")
    expected = run.load().probabilities(images)
    np.testing.assert_allclose(found.predictions.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(found.predictions.confidence, found.predictions.probabilities.max(axis=1))
    np.testing.assert_array_equal(found.predictions.labels, labels)
    with pytest.raises(UsageError, match=r"tta='mirrors': did you mean .mirror"):
        run.load().evaluate(api_data, tta="mirrors")  # type: ignore[arg-type]
    assert run.load().evaluate(DataSet(api_data)).accuracy == run.result["test_accuracy"]
    with pytest.raises(UsageError, match="has the splits train, test"):
        run.load().evaluate(api_data, "validation")
    done = dptrain_here("eval", run.folder, api_data, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "was trained in Python with the function api_runs:build" in done.stderr


def test_pictures_are_scaled_as_in_packing(run: Run, tmp_path: Path) -> None:
    model = run.load()
    picture = np.random.default_rng(0).integers(0, 256, (6, 7), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(encoded(picture))
    (tmp_path / "b.png").write_bytes(encoded(picture)[:-30])
    np.testing.assert_array_equal(model.probabilities([tmp_path / "a.png"]), model.probabilities(picture[None, None]))
    assert model.predict([]) == []
    with pytest.raises(DataError, match=r"b\.png"):
        model.predict([tmp_path / "a.png", str(tmp_path / "b.png")])
    with pytest.raises(DataError, match=r"missing\.png: cannot be read: No such file"):
        model.predict([tmp_path / "missing.png"])
    (tmp_path / "c.png").mkdir()
    with pytest.raises(DataError, match=r"c\.png: cannot be read"):
        model.predict(tmp_path.glob("c*"))


@pytest.mark.parametrize("shape", [(1, 6, 7), (3, 5, 4)])
def test_pictures_of_pillow_are_those_of_their_files(shape: tuple[int, int, int], tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    colours = Image.fromarray(draws.integers(0, 256, (90, 110, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    colours.save(tmp_path / "clear.png")
    colours.convert("RGB").save(tmp_path / "turned.png", exif=exif)
    colours.convert("RGB").save(tmp_path / "large.jpg", exif=exif)  # a file is decoded at an eighth of its size
    colours.convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(draws.integers(0, 1 << 16, (9, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    paths = sorted(tmp_path.glob("*.*"))
    form = Form(shape)
    expected = np.stack([decode_file(path, form)[0] for path in paths])
    np.testing.assert_array_equal(pixels_of(paths, form), expected)
    pictures = [Image.open(path) for path in paths]
    np.testing.assert_array_equal(pixels_of(iter(pictures), form), expected)
    decoded = [picture.copy() for picture in pictures if picture.format != "JPEG"]
    png = [number for number, path in enumerate(paths) if path.suffix != ".jpg"]
    np.testing.assert_array_equal(pixels_of([*decoded, *decoded], form), np.concatenate([expected[png]] * 2))
    assert {one.size for one in decoded} == {(110, 90), (8, 9)}  # the program's pictures are as before
    for picture in pictures:
        picture.close()


def test_a_broken_picture_of_pillow_is_a_data_error(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "a.bmp")
    whole = (tmp_path / "a.bmp").read_bytes()
    (tmp_path / "a.bmp").write_bytes(whole[:-100])
    with Image.open(tmp_path / "a.bmp") as picture, pytest.raises(DataError, match="damaged, truncated or closed"):
        load().predict([picture])


def test_what_is_no_image_is_explained(tmp_path: Path) -> None:
    model, picture = load(), np.zeros((3, 32, 32), np.uint8)
    one: tuple[Any, ...] = ("a.png", tmp_path / "a.png", Image.fromarray(picture[0]))
    for wrong in one:
        with pytest.raises(UsageError, match=r"expected an array of images, or a list of .*: put \[ \] around it"):
            model.predict(wrong)
    others: tuple[Any, ...] = (None, 3, [None], [3])
    for wrong in others:
        with pytest.raises(UsageError, match="expected an array of images, or a list of paths and pictures"):
            model.predict(wrong)
    with pytest.raises(UsageError, match=r"for arrays, pass np\.stack\(images\)"):
        model.predict([picture])  # type: ignore[list-item]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_advice_for_an_array_of_another_form_gives_the_images(channels: int) -> None:
    form = Form((channels, 5, 4))
    right = np.random.default_rng(0).integers(2, 256, (3, *form.image_shape), dtype=np.uint8)
    several = [right.transpose(0, 2, 3, 1), right / 255, right.astype(np.float32), right.astype(np.int64)]
    several += [right.transpose(0, 2, 3, 1) / np.float32(255), *([right[:, 0]] if channels == 1 else [])]
    single = [right[0], right[0].transpose(1, 2, 0), *([right[0, 0] / 255] if channels == 1 else [])]
    for wrong in (*several, *single):
        with pytest.raises(DataError, match="expected uint8") as caught:
            pixels_of(wrong, form)
        corrected = eval(str(caught.value).rpartition("; pass ")[2], {"images": wrong})
        np.testing.assert_array_equal(corrected, right[:1] if any(wrong is one for one in single) else right)
    for hopeless in (np.zeros((3, channels, 9, 9)), right / 255 - 1, right.astype(str), right > 9, right[:0] / 255):
        with pytest.raises(DataError, match=r"expected uint8 \(n, \d, 5, 4\)$"):
            pixels_of(hopeless, form)


def test_what_is_no_data_set_cannot_be_evaluated(run: Run, api_data: Path) -> None:
    model = run.load()
    pair = DataSet(api_data).arrays("test")
    others: tuple[Any, ...] = (pair, pair[0], None)
    for wrong in others:
        with pytest.raises(UsageError, match=r"expected a DataSet or the folder .*: dptrain\.pack\(\(images, labels\)"):
            model.evaluate(wrong)
    with pytest.raises(UsageError, match="found 3, expected the path of a file or folder"):
        load(3)  # type: ignore[arg-type]


def test_several_threads_may_use_a_model(run: Run) -> None:
    model = run.load()
    images = np.random.default_rng(0).integers(0, 256, (24, 100, 1, 6, 7), dtype=np.uint8)
    expected = [model.probabilities(some) for some in images]
    with ThreadPoolExecutor(4) as threads:
        for found, right in zip(threads.map(model.probabilities, images), expected, strict=True):
            np.testing.assert_array_equal(found, right)


def test_a_copy_of_a_model_predicts_the_same(run: Run, api_data: Path) -> None:
    images, _ = DataSet(api_data).arrays("test")
    for copied in (copy.deepcopy(run.load()), pickle.loads(pickle.dumps(run.load()))):
        np.testing.assert_array_equal(copied.probabilities(images), run.load().probabilities(images))


def test_the_network_that_comes_with_dptrain_is_loaded_without_a_path() -> None:
    model = load()
    assert model.classes[0] == "airplane"
    assert (
        model.predict(np.zeros((2, 3, 32, 32), np.uint8))
        == [model.classes[model.probabilities(np.zeros((1, 3, 32, 32), np.uint8)).argmax()]] * 2
    )


def test_a_function_or_a_file_must_be_given_for_a_users_network(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Pass it again: dptrain\.load\(path, model=function\)"):
        load(run)
    assert load(run, model=build).step == 14
    with pytest.raises(CheckpointError, match="another architecture"):
        load(run, model=lambda shape, classes: build(shape, classes, width=5))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "missing.h5")


def test_files_for_other_programs_have_the_values(run: Run, tmp_path: Path) -> None:
    model = run.load()
    with np.load(model.export(tmp_path / "a.npz")) as found:
        np.testing.assert_array_equal(found["linear1.weight"], model.parameters["linear1.weight"])
    assert "class" in model.torch_source()
    with pytest.raises(UsageError, match=r"expected a file that ends with \.onnx"):
        model.export(tmp_path / "a.pt")
