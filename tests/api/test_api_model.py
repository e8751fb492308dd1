"""dptrain.load and dptrain.Model: tensors by name, predictions, evaluation and files for other programs."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from api_runs import Trained, build
from command_runs import dptrain_here
from picture_files import encoded

from dptrain import DataSet, Run, load
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
    assert found.predictions.confusion(5).sum() == found.samples == 101
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
    assert "test_api_model" not in done.stdout
    assert done.returncode == 2
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
    for wrong in (str(tmp_path / "a.png"), [picture, picture], [None]):
        with pytest.raises(UsageError, match="expected an array of images or a list of paths"):
            model.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"for one image pass image\[None\]"):
        model.predict(picture[None])
    with pytest.raises(DataError, match=r"float64 \(1, 1, 6, 7\), expected uint8 \(n, 1, 6, 7\)"):
        model.predict(picture[None, None] / 255)  # type: ignore[arg-type]


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
