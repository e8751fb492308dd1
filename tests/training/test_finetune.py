"""--init-from and --freeze: what is taken, what stays to the bit, on any number of ranks and after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import find_archive
from selection import quick_first
from thread_ranks import on_ranks
from training_runs import CLASSES, Memory, configuration, packed, run

from dptrain.checkpoint.format import Checkpoint, read_checkpoint
from dptrain.errors import CheckpointError, UsageError
from dptrain.export import npz, safetensors
from dptrain.export.values import exported_tensors
from dptrain.nn import BatchNorm2d, Conv2d, Flatten, Linear, Network
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.optim import NAMES as OPTIMIZERS
from dptrain.training.finetune import frozen_tensors
from dptrain.training.loop import train
from dptrain.training.rebuild import network_of

NORMED = {"model": "normed", "model_options": {}}


def normed(input_shape: tuple[int, int, int], classes: int) -> list[Any]:
    """A network with two normalisations."""
    return [Conv2d(4, 3, padding=1), BatchNorm2d(), Conv2d(4, 3, padding=1), BatchNorm2d(), Flatten(), Linear(classes)]


@pytest.fixture(scope="module", autouse=True)
def architecture() -> Any:
    ARCHITECTURES["normed"] = normed
    yield
    del ARCHITECTURES["normed"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def fewer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set, with three classes."""
    return packed(tmp_path_factory.mktemp("fewer") / "set", classes=3, seed=1)


@pytest.fixture(scope="module")
def source(data: Path, tmp_path_factory: pytest.TempPathFactory, architecture: None) -> Path:
    """The run folder of a finished run whose evaluations use averages."""
    folder = tmp_path_factory.mktemp("source") / "run"
    run(configuration(data, folder, average="ema", **NORMED))
    return folder


def newest(folder: Path) -> Checkpoint:
    return read_checkpoint(sorted((folder / "checkpoints").glob("step-*.h5"))[-1])


def tensors_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Raw parameters and buffers, not their averages."""
    vectors = checkpoint.state.vectors
    views = [checkpoint.layouts[name].views(vectors[name]) for name in ("parameters", "buffers")]
    return {name: view.tobytes() for some in views for name, view in some.items()}


def numbers(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.float32)


def all_steps(folder: Path, data: Path, **changes: Any) -> tuple[Checkpoint, Checkpoint, Memory]:
    """The checkpoints of a run after its first and last step, and what it reported."""
    config = configuration(
        data, folder, **{"checkpoint_every": "1", "max_steps": 3, "warmup_steps": 0, **NORMED, **changes}
    )
    _, memory = run(config)
    paths = sorted((folder / "checkpoints").glob("step-*.h5"))
    return read_checkpoint(paths[0]), read_checkpoint(paths[-1]), memory


@quick_first("kind", ["run", "h5", "npz", "safetensors"])
def test_a_run_begins_with_the_values_that_the_source_evaluates(
    kind: str, source: Path, data: Path, tmp_path: Path
) -> None:
    """A learning rate of almost 0 keeps them."""
    checkpoint, path = newest(source), source
    if kind == "h5":
        path = source / "checkpoints" / "best.h5"
        checkpoint = read_checkpoint(path)
    elif kind != "run":
        path = tmp_path / f"a.{kind}"
        network = network_of(checkpoint, source)
        content = {"npz": npz, "safetensors": safetensors}[kind].content(checkpoint, lambda: network)
        path.write_bytes(content)
    config = configuration(data, tmp_path / "run", init_from=str(path), lr=1e-30, max_steps=1, warmup_steps=0, **NORMED)
    _, memory = run(config)
    expected, found = exported_tensors(checkpoint), exported_tensors(newest(tmp_path / "run"))
    for name in (one for one in expected if "running" not in one):
        np.testing.assert_array_equal(found[name], expected[name])
    everything = len(expected)
    sha = checkpoint.state.params_sha256
    assert memory.lines == [f"--init-from {path}: {everything} of {everything} tensors taken (params_sha256 {sha})"]


def test_a_last_layer_for_other_classes_keeps_its_fresh_values_and_the_report_says_so(
    source: Path, fewer: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"lr": 1e-30, "max_steps": 1, "seed": 5}
    _, end, memory = all_steps(tmp_path / "tuned", fewer, init_from=str(source), **changes)
    _, fresh, _ = all_steps(tmp_path / "fresh", fewer, **changes)
    found, untouched, expected = tensors_of(end), tensors_of(fresh), exported_tensors(newest(source))
    for name in ("linear1.weight", "linear1.bias"):
        np.testing.assert_allclose(numbers(found[name]), numbers(untouched[name]), atol=1e-25)
    for name in ("conv1.weight", "norm2.bias"):
        assert found[name] == expected[name].tobytes() != untouched[name]
    there = f"linear1.weight (3, 168) (there ({CLASSES}, 168)), linear1.bias (3,) (there ({CLASSES},))"
    assert memory.lines[1:] == [f"--init-from {source}: fresh initial values: {there}"]


def test_tensors_that_no_layer_has_are_reported(source: Path, data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": "convnet", "model_options": {"widths": [4]}, "max_steps": 1}
    _, _, memory = all_steps(tmp_path / "run", data, init_from=str(source), **changes)
    assert memory.lines[0].endswith(f"3 of 4 tensors taken (params_sha256 {newest(source).state.params_sha256})")
    assert "not used: norm1.weight, norm1.bias, conv2.weight" in memory.lines[2]


def test_a_source_without_a_tensor_that_fits_is_an_error_and_leaves_no_run_folder(data: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", other=np.ones(3, np.float32))
    with pytest.raises(
        CheckpointError, match=r"no tensor has the name and shape .* it has other \(3,\); expected conv"
    ):
        run(configuration(data, tmp_path / "run", init_from=str(tmp_path / "a.npz"), **NORMED))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_every_number_of_ranks_gives_the_same_bits_and_rank_0_alone_reads(
    source: Path, fewer: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(npz.content(newest(source), lambda: network_of(newest(source), source)))
    found = set()
    for ranks in (1, 2, 3):

        def program(rank: Any, ranks: int = ranks) -> Any:
            name = str(path) if rank.rank == 0 else str(tmp_path / "only-on-the-first-host.npz")
            changes = {"init_from": name, "freeze": "conv1,norm1", **NORMED}
            return train(configuration(fewer, tmp_path / str(ranks), **changes), rank)

        finished = on_ranks(ranks, program)[0]
        found.add((finished.params_sha256, finished.test_loss))
    assert len(found) == 1


@pytest.mark.slow
def test_a_resumed_run_does_not_read_the_source_again(source: Path, fewer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(npz.content(newest(source), lambda: network_of(newest(source), source)))
    changes: dict[str, Any] = {"init_from": str(path), "freeze": "norm*", **NORMED}
    whole, _ = run(configuration(fewer, tmp_path / "whole", **changes))
    run(configuration(fewer, tmp_path / "run", max_steps=4, **changes))
    path.unlink()
    resumed, memory = run(configuration(fewer, tmp_path / "run", **changes))
    assert memory.resumed is not None
    assert memory.lines == []
    assert resumed["params_sha256"] == whole["params_sha256"]
    assert resumed["test_loss"] == whole["test_loss"]


@pytest.mark.parametrize("key", ["init_from", "freeze"])
def test_a_run_cannot_be_resumed_with_another_value(key: str, source: Path, data: Path, tmp_path: Path) -> None:
    values = {"init_from": (str(source), str(source / "checkpoints" / "best.h5")), "freeze": ("conv1", "conv2")}[key]
    config = configuration(data, tmp_path / "run", max_steps=1, **{key: values[0]}, **NORMED)
    run(config)
    other: dict[str, Any] = {key: values[1]}
    with pytest.raises(CheckpointError, match=f"of another run: --{key.replace('_', '-')} "):
        run(replace(config, **other))


@quick_first("optimizer", OPTIMIZERS)
def test_frozen_layers_stay_to_the_bit_with_every_optimizer(optimizer: str, data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": optimizer, "freeze": "conv1, norm1", "clip_norm": 0.5, "lr": 0.01}
    first, last, _ = all_steps(tmp_path / "run", data, average="ema", weight_decay=0.1, **changes)
    before, after = tensors_of(first), tensors_of(last)
    for name in before:
        assert (before[name] == after[name]) == name.startswith(("conv1.", "norm1.")), name
    initial = network_of(last, tmp_path).initial(0)
    views = network_of(last, tmp_path).layout.views(initial["parameters"])
    assert after["conv1.weight"] == views["conv1.weight"].tobytes()


def network() -> Network:
    return Network(normed((2, 6, 7), 5), (2, 6, 7))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("", set()),
        ("conv1", {"conv1.weight", "conv1.bias"}),
        ("norm?.running_*", {f"norm{n}.running_{what}" for n in (1, 2) for what in ("mean", "var")}),
        (
            "*.bias , linear1",
            {f"{one}.bias" for one in ("conv1", "norm1", "conv2", "norm2", "linear1")} | {"linear1.weight"},
        ),
    ],
)
def test_patterns_choose_layers_and_tensors(patterns: str, expected: set[str]) -> None:
    assert frozen_tensors(patterns, network()) == expected


@pytest.mark.parametrize("patterns", ["conv3", "conv1,,norm1", "weight", "conv1.gamma"])
def test_a_pattern_that_chooses_nothing_is_an_error(patterns: str) -> None:
    with pytest.raises(UsageError, match="--freeze: the network has no layer or tensor "):
        frozen_tensors(patterns, network())


def test_freezing_everything_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing to train"):
        run(configuration(data, tmp_path / "run", freeze="*", **NORMED))


@pytest.mark.long
@pytest.mark.cifar10
@pytest.mark.timeout(1200)
def test_fine_tuning_from_10_to_5_classes_is_better_than_training_from_scratch_at_equal_steps(tmp_path: Path) -> None:
    """Real CIFAR-10, three seeds: see tests/benchmarks/finetuning.py."""
    from benchmarks.finetuning import compare

    archive = find_archive()
    if archive is None:
        pytest.skip("no CIFAR-10 archive")
    found = compare(archive, tmp_path, seeds=3).accuracies
    for scratch, tuned in zip(found["from scratch"], found["fine-tuned"], strict=True):
        assert tuned > scratch
