"""dptrain.optim.average: averages by their formulas, and their place in a state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dptrain.arrays.memory import Array
from dptrain.checkpoint.state import evaluated, initial_state, vector_layouts
from dptrain.nn import BatchNorm2d, Conv2d, Flatten, Linear, Network
from dptrain.optim.average import Average, Lookahead, make_average

STEPS, SIZES = 12, {"parameters": 5, "buffers": 2}


def changes(name: str) -> Array:
    """What training adds to a vector at each step, (STEPS, size)."""
    seed = sorted(SIZES).index(name)
    return np.random.default_rng(seed).standard_normal((STEPS, SIZES[name])).astype(np.float32)


def run(average: Average | None) -> dict[str, Array]:
    vectors = {name: np.full(size, 3, np.float32) for name, size in SIZES.items()}
    vectors |= {"average": vectors["parameters"].copy(), "average_buffers": vectors["buffers"].copy()}
    for step in range(STEPS):
        for name in SIZES:
            vectors[name] += changes(name)[step]
        assert average is not None
        average.update(vectors, step)
    return vectors


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_an_exponential_moving_average(decay: float) -> None:
    vectors = run(make_average("ema", {"decay": decay}, STEPS))
    for name, averaged in (("parameters", "average"), ("buffers", "average_buffers")):
        raw = np.full(SIZES[name], 3.0)
        expected = raw.copy()
        for step, change in enumerate(changes(name).astype(np.float64)):
            raw = raw + change
            share = min(decay, (1 + step) / (10 + step))
            expected = share * expected + (1 - share) * raw
        np.testing.assert_allclose(vectors[averaged], expected, rtol=1e-5)
        np.testing.assert_allclose(vectors[name], raw, rtol=1e-5)


@pytest.mark.parametrize(("every", "alpha"), [(1, 0.5), (5, 0.5), (4, 1.0), (5, 0.8)])
def test_lookahead_continues_from_the_average(every: int, alpha: float) -> None:
    vectors = run(Lookahead(STEPS, every=every, alpha=alpha))
    for name, averaged in (("parameters", "average"), ("buffers", "average_buffers")):
        fast = slow = np.full(SIZES[name], 3.0)
        for step, change in enumerate(changes(name).astype(np.float64)):
            fast = fast + change
            if step % every == every - 1:
                fast = slow = slow + alpha * (fast - slow)
        np.testing.assert_allclose(vectors[averaged], slow, rtol=1e-5)
        np.testing.assert_allclose(vectors[name], fast, rtol=1e-5)


def test_the_share_of_lookahead_falls_from_1_to_alpha() -> None:
    """airbench's rule: the average keeps 0.95^5 (t / T)^3 of itself after t steps."""
    vectors = run(Lookahead(STEPS, every=4, alpha=1 - 0.95**5, power=3))
    fast = slow = np.full(SIZES["parameters"], 3.0)
    for step, change in enumerate(changes("parameters").astype(np.float64)):
        fast = fast + change
        if step % 4 == 3:
            kept = 0.95**5 * ((step + 1) / STEPS) ** 3
            fast = slow = kept * slow + (1 - kept) * fast
    np.testing.assert_allclose(vectors["average"], slow, rtol=1e-5)
    np.testing.assert_allclose(vectors["parameters"], fast, rtol=1e-5)


def test_averages_begin_as_copies_and_are_evaluated_in_place_of_the_raw_vectors() -> None:
    network = Network([Conv2d(3), BatchNorm2d(), Flatten(), Linear(2)], (1, 4, 4))
    layouts = vector_layouts(network, ("momentum",), averaged=True)
    vectors = initial_state(network, layouts, 3).vectors
    assert list(vectors) == list(layouts) == ["parameters", "buffers", "momentum", "average", "average_buffers"]
    for name, averaged in (("parameters", "average"), ("buffers", "average_buffers")):
        assert not np.shares_memory(vectors[name], vectors[averaged])
        np.testing.assert_array_equal(vectors[name], vectors[averaged])
        assert vectors[name].any()
        assert evaluated(vectors)[name] is vectors[averaged]
    plain = initial_state(network, vector_layouts(network, ("momentum",)), 3).vectors
    assert evaluated(plain)["parameters"] is plain["parameters"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ema", {"decay": 1.0}, "decay is 1.0, expected 0 <= decay < 1"),
        ("ema", {"decay": -0.1}, "expected 0 <= decay"),
        ("lookahead", {"every": 0}, "every is 0 and alpha 0.5, expected at least 1"),
        ("lookahead", {"every": 2.5}, "every is 2.5"),
        ("lookahead", {"alpha": 0.0}, "0 < alpha <= 1"),
        ("lookahead", {"power": -1}, "power is -1, expected 0 or more"),
        ("none", {"decay": 0.9}, "choose one with --average"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_average(name, options, STEPS)
