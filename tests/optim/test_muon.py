"""dptrain.optim.muon: orthogonal steps for the weights of hidden layers, shared out over ranks; SGD for the others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from thread_ranks import on_ranks

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array, Workspace
from dptrain.errors import RankLostError
from dptrain.optim.muon import COEFFICIENTS, Muon, orthogonal, shared_out
from dptrain.optim.optimizer import OneRank, Parameter
from dptrain.optim.sgd import SGD
from dptrain.parallel.communicator import Communicator

HIDDEN = {
    "conv2.weight": (6, 4, 3, 3),
    "conv3.weight": (4, 6, 1, 1),
    "conv4.weight": (5, 4, 3, 3),
    "mid.weight": (7, 5),
}
OTHERS = {"conv1.weight": (4, 3, 3, 3), "conv2.bias": (6,), "norm1.weight": (6,), "linear1.weight": (5, 7)}
GROUPS = {"conv1.weight": ("first",), "norm1.weight": ("norm",), "linear1.weight": ("head",)}
PARAMETERS = [
    Parameter(name, shape, float(name.endswith("weight")), groups=(name, *GROUPS.get(name, ())))
    for name, shape in {**OTHERS, **HIDDEN}.items()
]
LAYOUT = Layout({one.name: one.shape for one in PARAMETERS})
STEPS = 12


def gradients(seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(LAYOUT.size, dtype=np.float32) for _ in range(STEPS)]


def new_vectors(seed: int = 9) -> dict[str, Array]:
    parameters = np.random.default_rng(seed).standard_normal(LAYOUT.size, dtype=np.float32)
    return {"parameters": parameters, "momentum": np.zeros_like(parameters)}


def run(
    optimizer: Muon | SGD, vectors: dict[str, Array] | None = None, steps: range = range(STEPS)
) -> dict[str, Array]:
    """The vectors after these steps, whose learning rates fall."""
    vectors = new_vectors() if vectors is None else vectors
    for step in steps:
        optimizer.update(vectors, gradients()[step].copy(), 0.2 / (1 + step), step)
    return vectors


def published(momentum: float, nesterov: bool) -> dict[str, Array]:
    """The weights of hidden layers after all steps by the formulas of airbench94_muon.py, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    p = {name: view.astype(np.float64) for name, view in LAYOUT.views(new_vectors()["parameters"]).items()}
    buffers = {name: np.zeros(shape) for name, shape in HIDDEN.items()}
    for step, gradient in enumerate(gradients()):
        for name in HIDDEN:
            g = LAYOUT.views(gradient)[name].astype(np.float64)
            buffers[name] = momentum * buffers[name] + g
            g = g + momentum * buffers[name] if nesterov else buffers[name]
            p[name] *= len(p[name]) ** 0.5 / np.sqrt((p[name] ** 2).sum())
            X = g.reshape(len(g), -1)
            X = X / (np.sqrt((X**2).sum()) + 1e-7)
            for _ in range(3):
                A = X @ X.T
                X = a * X + (b * A + c * A @ A) @ X
            p[name] -= 0.2 / (1 + step) * X.reshape(g.shape)
    return {name: p[name] for name in HIDDEN}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.6, True), (0.6, False), (0.0, True)])
def test_hidden_weights_follow_the_published_formulas(momentum: float, nesterov: bool) -> None:
    vectors = run(Muon(PARAMETERS, momentum=momentum, nesterov=nesterov))
    for name, expected in published(momentum, nesterov).items():
        np.testing.assert_allclose(LAYOUT.views(vectors["parameters"])[name], expected, rtol=1e-4, atol=2e-5)


def test_without_normalisation_the_steps_agree_with_pytorch() -> None:
    """PyTorch iterates in bfloat16, with 8 bits of precision."""
    torch = pytest.importorskip("torch")
    start = LAYOUT.views(new_vectors()["parameters"])
    tensors = {name: torch.tensor(start[name].reshape(shape[0], -1)) for name, shape in HIDDEN.items()}
    theirs = torch.optim.Muon(list(tensors.values()), lr=1.0, momentum=0.9, weight_decay=0.1, ns_steps=5)
    for step, gradient in enumerate(gradients()):
        theirs.param_groups[0]["lr"] = 0.2 / (1 + step)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(LAYOUT.views(gradient)[name].reshape(tensor.shape))
        theirs.step()
    vectors = run(Muon(PARAMETERS, momentum=0.9, weight_decay=0.1, normalise=False, steps=5))
    for name, tensor in tensors.items():
        found = LAYOUT.views(vectors["parameters"])[name].reshape(tensor.shape)
        moved = np.linalg.norm(tensor.numpy() - start[name].reshape(tensor.shape))
        assert np.linalg.norm(found - tensor.numpy()) < 0.02 * moved, name


def test_other_parameters_are_trained_by_sgd() -> None:
    muon = run(Muon(PARAMETERS, sgd_momentum=0.85, weight_decay=0.1))
    sgd = run(SGD(PARAMETERS, momentum=0.85, weight_decay=0.1))
    for slot in ("parameters", "momentum"):
        found, expected = LAYOUT.views(muon[slot]), LAYOUT.views(sgd[slot])
        for name in OTHERS:
            np.testing.assert_array_equal(found[name], expected[name])
        assert not any(np.array_equal(found[name], expected[name]) for name in HIDDEN)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (17, 17), (1, 9), (9, 1)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_iterations_are_a_polynomial_of_the_singular_values(shape: tuple[int, int], steps: int) -> None:
    matrix = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    u, values, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values /= math.sqrt((values**2).sum())
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    np.testing.assert_allclose(orthogonal(matrix, steps, Workspace()), (u * values) @ v, rtol=1e-4, atol=2e-5)


def test_a_gradient_of_zeros_gives_no_step() -> None:
    assert not orthogonal(np.zeros((3, 4), np.float32), 3, Workspace()).any()


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_share_the_work_and_give_the_bits_of_one_rank(ranks: int) -> None:
    """Also when a run is continued on another number of ranks."""
    expected = run(Muon(PARAMETERS))

    def program(communicator: Communicator) -> dict[str, Array]:
        optimizer = Muon(PARAMETERS)
        optimizer.join(communicator)
        return run(optimizer, {name: one.copy() for name, one in halfway.items()}, range(STEPS // 2, STEPS))

    halfway = run(Muon(PARAMETERS), steps=range(STEPS // 2))
    for vectors in on_ranks(ranks, program):
        for name, vector in vectors.items():
            assert vector.tobytes() == expected[name].tobytes()


def test_each_matrix_belongs_to_one_rank_and_the_work_is_balanced() -> None:
    matrices = {f"conv{number}": (256, 2304) for number in range(6)} | {"small": (64, 216), "wide": (64, 576)}
    owned = shared_out(matrices, 3)
    assert sorted(name for names in owned for name in names) == sorted(matrices)
    assert [sum(name.startswith("conv") for name in names) for names in owned] == [2, 2, 2]
    assert shared_out(dict(reversed(matrices.items())), 3) == owned
    assert shared_out({"one": (2, 2)}, 3) == [["one"], [], []]


def test_a_lost_rank_leaves_all_vectors_as_they_were() -> None:
    class Lost(OneRank):
        def confirm(self) -> None:
            raise RankLostError("a rank has died")

    optimizer, vectors, before = Muon(PARAMETERS), new_vectors(), new_vectors()
    optimizer.join(Lost())
    with pytest.raises(RankLostError):
        optimizer.update(vectors, gradients()[0], 0.1, 0)
    assert all(vectors[name].tobytes() == before[name].tobytes() for name in before)


def test_a_frozen_matrix_keeps_its_bits() -> None:
    ended = [replace(one, schedule=lambda step: 0.0) if one.name == "conv3.weight" else one for one in PARAMETERS]
    views = [
        LAYOUT.views(vectors["parameters"]) for vectors in (new_vectors(), run(Muon(ended)), run(Muon(PARAMETERS)))
    ]
    before, frozen, free = views
    assert frozen["conv3.weight"].tobytes() == before["conv3.weight"].tobytes()
    for name in LAYOUT.shapes.keys() - {"conv3.weight"}:
        assert frozen[name].tobytes() == free[name].tobytes()


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"sgd_momentum": -0.1}, {"steps": 0}, {"steps": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= momentum < 1 and at least one step"):
        Muon(PARAMETERS, **options)
