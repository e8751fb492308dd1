"""Synchronized batch norm: shards give the results of one microbatch with all samples, on any ranks and threads."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import ready
from ranks_that_can_die import Death, on_ranks_that_can_die
from selection import quick_first
from thread_ranks import on_ranks
from training_runs import BATCH_SIZE, STEPS_PER_EPOCH, configuration, packed, session_and_state

from dptrain.arrays.memory import Array, Workspace
from dptrain.config.train import TrainConfig
from dptrain.errors import ModelError, RankLostError
from dptrain.nn import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    Network,
    ReLU,
    Residual,
)
from dptrain.nn.graph import Part
from dptrain.nn.segments import Rounds, Sums
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.training.loop import train
from dptrain.training.step import add_sums

SHAPE, CLASSES = (2, 6, 7), 3


def norms(channels: int, sync: bool = True, scale: bool = True) -> list[Any]:
    first, second = (BatchNorm2d(sync=sync, scale=scale) for _ in range(2))
    return [Conv2d(channels, 3, padding=1), first, ReLU(), Conv2d(channels, 3, padding=1, bias=False), second]


NETWORKS: dict[str, Any] = {
    "chain": lambda: [*norms(3), ReLU(), MaxPool2d(), Flatten()],
    "first": lambda: [BatchNorm2d(sync=True), Flatten()],
    "fixed scale": lambda: [*norms(3, scale=False), ReLU(), Flatten()],
    "two at once": lambda: [Residual(norms(3), [Conv2d(3, 1), BatchNorm2d(sync=True)]), ReLU(), Flatten()],
    "small maps": lambda: [Conv2d(3), MaxPool2d((4, 5)), BatchNorm2d(sync=True), ReLU(), Flatten()],
}
NORM = "norm1.weight", "norm1.bias"


def in_small_blocks(parts: Part) -> Network:
    network = Network(parts, SHAPE)
    network.plan.segments = [replace(one, block=2 + number) for number, one in enumerate(network.plan.segments)]
    return network


def advance(rounds: Rounds[Any], totals: Any) -> Sums | None:
    """The next sums of a microbatch, None at its end."""
    try:
        return rounds.send(totals)
    except StopIteration:
        return None


def synchronized(network: Network, vectors: dict[str, Array], shards: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The summed gradient and statistics (float64) of microbatches that are computed together."""
    gradients = np.full((len(shards), network.layout.size), np.nan)
    statistics = np.full((len(shards), network.buffer_layout.size), np.nan)
    prepared = ready(network, vectors["parameters"], vectors["buffers"])
    computations = [
        network.in_rounds(prepared, images, labels, gradient, Workspace(np.float64), statistics=own)
        for (images, labels), gradient, own in zip(shards, gradients, statistics, strict=True)
    ]
    sums = [advance(one, None) for one in computations]
    for _ in range(network.rounds()):
        totals = reduce(add_sums, sums)
        assert totals is not None
        sums = [None if own is None else advance(one, totals) for one, own in zip(computations, sums, strict=True)]
    assert sums == [None] * len(shards)
    return gradients.sum(axis=0), statistics.sum(axis=0)


@pytest.mark.parametrize("sizes", [[11], [5, 0, 3, 2, 1], [0, 0, 2]])
@pytest.mark.parametrize("name", NETWORKS)
def test_shards_give_the_results_of_pytorch_for_the_whole_batch(name: str, sizes: list[int]) -> None:
    import torch
    from torch_networks import TorchNetwork

    network, samples = in_small_blocks([*NETWORKS[name](), Linear(CLASSES)]), sum(sizes)
    generator = np.random.default_rng(len(sizes))
    vectors = {key: vector.astype(np.float64) for key, vector in network.initial(0).items()}
    vectors["parameters"] += 0.1 * generator.normal(size=network.layout.size)
    images = generator.normal(size=(*SHAPE[1:], samples, SHAPE[0])) + np.arange(samples)[:, None]  # shards differ
    labels = generator.integers(0, CLASSES, samples)
    ends = np.cumsum(sizes)
    shards = [(images[:, :, end - size : end], labels[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    gradient, statistics = synchronized(network, vectors, shards)

    theirs = TorchNetwork(network, vectors)
    logits = theirs(torch.from_numpy(images.transpose(2, 3, 0, 1).copy()), training=True)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum").backward()
    for tensor, ours in network.layout.views(gradient).items():
        if tensor in theirs.trained:
            np.testing.assert_allclose(ours, theirs.tensors[tensor].grad.numpy(), rtol=1e-8, atol=1e-10, err_msg=tensor)
    network.update_buffers(vectors["buffers"], statistics / samples)
    theirs.move_running_averages()
    for tensor, ours in network.buffer_layout.views(vectors["buffers"]).items():
        np.testing.assert_allclose(ours, theirs.tensors[tensor].numpy(), rtol=1e-7, atol=1e-9, err_msg=tensor)


@pytest.mark.parametrize("frozen", [NORM, (*NORM, "conv1.weight", "conv1.bias"), ("linear1.weight", "linear1.bias")])
def test_frozen_parameters_leave_the_gradient_of_the_others(frozen: tuple[str, ...]) -> None:
    parts = [Conv2d(3), BatchNorm2d(sync=True), ReLU(), Conv2d(4), BatchNorm2d(sync=True), Flatten(), Linear(CLASSES)]
    network, gradients = in_small_blocks(parts), []
    prepared = ready(network, network.initial(0)["parameters"].astype(np.float64))
    images, labels = np.random.default_rng(0).normal(size=(6, 7, 5, 2)), np.array([0, 1, 2, 1, 0])
    rounds = []
    for names in ((), frozen):
        gradient = np.empty(network.layout.size)
        computation = network.in_rounds(prepared, images, labels, gradient, Workspace(np.float64), frozen=names)
        sums, pauses = advance(computation, None), 0
        while sums is not None:
            sums, pauses = advance(computation, sums), pauses + 1
        assert pauses == network.rounds(names)
        rounds.append(pauses)
        gradients.append(gradient)
    assert rounds == [4, 3 if "conv1.bias" in frozen else 4]
    for name, part in network.layout.slices.items():
        expected = np.zeros(part.stop - part.start) if name in frozen else gradients[0][part]
        np.testing.assert_allclose(gradients[1][part], expected, rtol=1e-9, atol=1e-9)


def build(input_shape: tuple[int, int, int], classes: int, *, sync: bool = True) -> Part:
    """Synchronized norms, two of them at once, and one that is not."""
    return [
        *(Conv2d(3, 3, padding=1), BatchNorm2d(sync=sync), ReLU(), Dropout(0.1), BatchNorm2d()),
        *(Residual(norms(4, sync), [Conv2d(4, 1), BatchNorm2d(sync=sync)]), ReLU()),
        *(GlobalAvgPool2d(), Linear(classes)),
    ]


def build_chain(input_shape: tuple[int, int, int], classes: int) -> Part:
    return [*norms(3), ReLU(), *norms(4), ReLU(), Flatten(), Linear(classes)]


@pytest.fixture(autouse=True)
def architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "synchronized", build)
    monkeypatch.setitem(ARCHITECTURES, "chain", build_chain)


@quick_first("threads", [1, 2, 3], quick=2)
@quick_first(("train", "batch_size", "step"), [(101, BATCH_SIZE, 0), (101, BATCH_SIZE, 6), (9, 4, 2)])
def test_a_step_is_one_pass_over_the_global_batch(
    train: int, batch_size: int, step: int, threads: int, tmp_path: Path
) -> None:
    """Also the last step of an epoch, in which shards have 2, 1, 1 and 1 samples, or 1, 0, 0 and 0."""
    data = packed(tmp_path / "set", train=train)
    options: dict[str, Any] = {"model": "chain", "model_options": {}, "weight_decay": 0.0}
    config = configuration(data, tmp_path / "run", batch_size=batch_size, threads=threads, **options)
    session, state = session_and_state(config)
    network, batches = session.network, session.take_step.work.batches
    for earlier in range(step):
        session.take_step(state, 0, earlier, 0.01)
    parts = [batches[shard].batch(0, step, Workspace()) for shard in sorted(batches)]
    images = np.concatenate([images for images, _ in parts], axis=-2).astype(np.float64)
    labels = np.concatenate([labels for _, labels in parts])
    gradient, statistics = np.zeros(network.layout.size), np.zeros(network.buffer_layout.size)
    prepared = ready(network, state.parameters.astype(np.float64))
    network.loss_and_grad(prepared, images, labels, gradient, Workspace(np.float64), statistics=statistics)
    buffers = state.vectors["buffers"].astype(np.float64)
    network.update_buffers(buffers, statistics / len(labels))

    state.vectors["momentum"].fill(0)
    outcome = session.take_step(state, 0, step, 0.01)
    session.pool.close()
    assert outcome.samples == len(labels)
    gradient /= len(labels)
    assert np.linalg.norm(state.vectors["momentum"] - gradient) < 1e-5 * np.linalg.norm(gradient)
    np.testing.assert_allclose(state.vectors["buffers"], buffers, rtol=1e-5, atol=1e-6)
    assert min(vars(outcome.seconds).values()) >= 0


CASES: dict[str, dict[str, Any]] = {
    "whole microbatches": {},
    "parts": {"accumulate": 2},
    "frozen groups": {"group_epochs": {"conv1": 1.2, "norm1": 0.5}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_on_ranks_threads_and_resumed(case: str, tmp_path: Path) -> None:
    """Three epochs of 4 steps, the last of each with 2 samples in 4 shards; one run stops in the second."""
    data = packed(tmp_path / "set", train=50)

    def end(name: str, ranks: int, **changes: object) -> tuple[str, float]:
        options: dict[str, Any] = {"model": "synchronized", "model_options": {}, "epochs": 3, **CASES[case], **changes}
        config: TrainConfig = configuration(data, tmp_path / name, **options)
        finished = on_ranks(ranks, lambda rank: train(config, rank))[0]
        assert finished is not None
        return finished.params_sha256, finished.test_loss

    expected = end("alone", 1)
    assert end("threads", 1, threads=2) == expected
    assert end("two", 2) == expected
    assert end("two-threads", 2, threads=2) == expected
    assert end("three", 3) == expected
    assert end("resumed", 3, max_steps=6) != expected
    assert end("resumed", 2) == expected
    assert end("not-synchronized", 1, model_options={"sync": False}) != expected


def test_a_rank_that_is_lost_at_a_norm_changes_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(packed(tmp_path / "set"), tmp_path / "run", model="chain", model_options={})
    session, state = session_and_state(config)
    allgather, calls, limit = session.communicator.allgather, 0, 0
    session.take_step(state, 0, 0, 0.01)
    before, expected = state.digest(), state.copy()
    session.take_step(expected, 0, 1, 0.01)

    def lost(value: object) -> list[object]:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise RankLostError("a rank has died")
        return allgather(value)

    monkeypatch.setattr(session.communicator, "allgather", lost)
    for limit in range(session.network.rounds()):  # noqa: B007 - `lost` reads it
        calls = 0
        with pytest.raises(RankLostError):
            session.take_step(state, 0, 1, 0.01)
        assert state.digest() == before
    monkeypatch.undo()
    session.take_step(state, 0, 1, 0.01)
    assert state.digest() == expected.digest()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_an_elastic_run_survives_a_death_at_a_norm(rank: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "chain", "model_options": {}, "max_steps": STEPS_PER_EPOCH}
    data = packed(tmp_path / "set")
    alone = train(configuration(data, tmp_path / "alone", **options), on_ranks(1, lambda one: one)[0])
    assert alone is not None
    options |= {"elastic": True, "checkpoint_every": "2", "stall_limit": 0.0}

    def finish(name: str, *deaths: Death) -> tuple[list[str], int]:
        config = configuration(data, tmp_path / name, **options)
        results, world = on_ranks_that_can_die(3, lambda one: train(config, one) or "not rank 0", deaths)
        return [result.params_sha256 for result in results.values() if not isinstance(result, str)], max(world.calls)

    hashes, calls = finish("undisturbed")
    assert hashes == [alone.params_sha256]
    # A step has 8 small reductions, each of an exchange and an agreement, and then 4 other collectives.
    for call in range(calls // 2, calls // 2 + 12, 3):
        assert finish(f"death-{call}", Death(rank, call))[0] == [alone.params_sha256]


def test_one_value_a_channel_in_the_global_batch_cannot_be_normalised() -> None:
    network = Network([Conv2d(4), BatchNorm2d(sync=True), Flatten(), Linear(3)], (2, 3, 3))
    vectors = {name: vector.astype(np.float64) for name, vector in network.initial(0).items()}
    image = np.random.default_rng(0).normal(size=(3, 3, 1, 2)), np.zeros(1, np.int64)
    assert np.isfinite(synchronized(network, vectors, [image, image])[0]).all()
    with pytest.raises(ModelError, match=r"gets one value for each channel .*--batch-size"):
        synchronized(network, vectors, [image, (image[0][:, :, :0], image[1][:0])])
