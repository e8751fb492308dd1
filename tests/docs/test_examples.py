"""The examples: correct gradients, and the same bits on ranks, threads and after a resume."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from documents import CHECKOUT
from mpi_runs import dptrain, own_mpi
from networks import training_pass
from selection import quick_first
from thread_ranks import on_ranks
from training_runs import LAST_STEP, configuration, flags, packed

from dptrain.nn import check_layer
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.training.loop import train

FOLDER = CHECKOUT / "examples"
OPTIONS = {"width": 3, "p": 0.3}


@pytest.fixture(scope="module", autouse=True)
def layers() -> Iterator[ModuleType]:
    """The module of the layers; the architecture is a named one, as ranks that are threads cannot load model files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        patch.setitem(ARCHITECTURES, "example", import_module("network").build)
        yield import_module("layers")
    for name in ("network", "layers"):
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


def run(data: Path, folder: Path, ranks: int, **changes: object) -> str:
    """The hash of the final parameters of a run on ranks that are threads."""
    config = configuration(data, folder, model="example", model_options=OPTIONS, **changes)
    finished = on_ranks(ranks, lambda communicator: train(config, communicator, []))[0]
    assert finished is not None
    return finished.params_sha256


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(data, tmp_path_factory.mktemp("alone") / "run", 1)


def test_the_backward_passes_are_the_gradients(layers: ModuleType) -> None:
    check_layer(layers.ChannelNorm(), (3, 4, 5))
    check_layer(layers.ChannelDropout(0.4), (3, 4, 5))
    check_layer(layers.HardSwish(), (3, 4, 5))


def test_the_activation_agrees_with_pytorch(layers: ModuleType) -> None:
    import torch

    x = np.linspace(-5, 5, 1000, dtype=np.float32)[:, None]
    layer, call = layers.HardSwish(), training_pass({})
    given = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.hardswish(given)
    expected.sum().backward()
    y, saved = layer.forward(x, call)
    assert given.grad is not None
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(layer.backward(np.ones_like(x), saved, call), given.grad.numpy(), atol=1e-6)


@quick_first(("ranks", "threads"), [(1, 2), (2, 1), (2, 2), (3, 1)])
def test_ranks_and_threads_do_not_change_a_bit(
    ranks: int, threads: int, data: Path, undisturbed: str, tmp_path: Path
) -> None:
    assert run(data, tmp_path / "run", ranks, threads=threads) == undisturbed


@pytest.mark.slow
@quick_first("step", [3, LAST_STEP // 2, LAST_STEP - 2])
def test_a_resume_on_other_ranks_does_not_change_a_bit(step: int, data: Path, undisturbed: str, tmp_path: Path) -> None:
    run(data, tmp_path / "run", 2, max_steps=step)
    assert run(data, tmp_path / "run", 3) == undisturbed


def test_dropped_values_depend_on_the_seed(data: Path, undisturbed: str, tmp_path: Path) -> None:
    assert run(data, tmp_path / "run", 1, seed=1) != undisturbed


@pytest.mark.mpi
@pytest.mark.once
def test_real_ranks_that_load_the_file_do_not_change_a_bit(data: Path, undisturbed: str, tmp_path: Path) -> None:
    words = [
        *flags(data, tmp_path / "run", model=f"{FOLDER / 'network.py'}:build"),
        "--model-options",
        "width = 3, p = 0.3",
    ]
    done = dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=2)
    assert done.returncode == 0, done.stderr
    assert re.search(f"^params_sha256 +{undisturbed}$", done.stdout, re.MULTILINE)
