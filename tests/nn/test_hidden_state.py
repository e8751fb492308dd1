"""dptrain.nn.hidden_state: user layers that would give different bits on another number of ranks or threads."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
from command_runs import assert_nothing_half_written, train
from mpi_runs import dptrain, own_mpi
from training_runs import configuration, flags, packed, run

from dptrain.errors import ModelError
from dptrain.nn import BatchNorm2d, Flatten, Linear
from dptrain.nn.hidden_state import check_layers
from dptrain.nn.network import Network
from dptrain.training.architecture import find_architecture
from dptrain.training.model_checks import try_model

HEAD = """
import functools, itertools, os, random, threading, time
from collections import deque
import numpy as np
from dptrain.nn import Conv2d, Flatten, Layer, Linear, ReLU, Tensor, he_uniform, zeros

class Identity(Layer):
    kind = "mine"
    def forward(self, x, call):
        return x, None
    def backward(self, dy, saved, call):
        return dy
"""
BUILD = """
def build(input_shape, classes):
    return [Conv2d(3, padding=1), Mine(), Flatten(), Linear(classes)]
"""


def write(path: Path, body: str, build: str = BUILD) -> str:
    path.write_text(HEAD + textwrap.dedent(body) + build)
    return f"{path}:build"


def forward(*lines: str, before: str = "", init: str = "") -> str:
    """A layer `Mine` whose forward pass has these lines."""
    start = f"    def __init__(self):\n        {init}\n" if init else ""
    body = "".join(f"        {line}\n" for line in lines)
    return f"{before}\nclass Mine(Identity):\n{start}    def forward(self, x, call):\n{body}"


MASK = "return x * (mask >= 0.5), None"

BROKEN = {
    # Draws
    "np.random": (
        forward("mask = np.random.random(x.shape)", MASK),
        "mine1 (Mine) uses a global random generator",
    ),
    "np.random seeded in forward": (
        forward("np.random.seed(0)", "mask = np.random.random(x.shape)", MASK),
        "mine1 (Mine) uses a global random generator (np.random or random) in forward",
    ),
    "random": (forward("return x * random.choice([1, 2]), None"), "uses a global random generator"),
    "a generator of the layer": (
        forward("mask = self.generator.random(x.shape)", MASK, init="self.generator = np.random.default_rng(0)"),
        "the attribute 'generator' of layer mine1 (Mine) changes while the network computes",
    ),
    "a generator of the module": (
        forward("mask = GENERATOR.random(x.shape)", MASK, before="GENERATOR = np.random.default_rng(0)"),
        "the attribute 'GENERATOR' of module net changes",
    ),
    "a method of a generator": (
        forward("mask = DRAW(x.shape)", MASK, before="DRAW = np.random.RandomState(0).random_sample"),
        "the attribute 'DRAW' of module net changes",
    ),
    "a generator of Python's": (
        forward("return x * DICE.random(), None", before="DICE = random.Random(0)"),
        "the attribute 'DICE' of module net changes",
    ),
    "entropy of the system": (
        forward("mask = np.random.default_rng().random(x.shape)", MASK),
        "is not the same when one microbatch is computed twice",
    ),
    "urandom": (forward("return x * os.urandom(1)[0], None"), "is not the same when one microbatch is computed twice"),
    "the clock": (forward("return x * np.float32(time.perf_counter_ns() % 9999), None"), "is not the same"),
    "draws in backward": (
        "class Mine(Identity):\n    def backward(self, dy, saved, call):\n        return dy * np.random.random()\n",
        "uses a global random generator (np.random or random) in backward",
    ),
    "draws in prepare": (
        "class Mine(Identity):\n    def prepare(self, parameters, workspace):\n"
        "        return {'noise': np.random.random()}\n",
        "uses a global random generator (np.random or random) in prepare",
    ),
    # State
    "a list": (forward("self.calls.append(1)", "return x, None", init="self.calls = []"), "'calls'"),
    "an array in place": (
        forward("np.add(self.total, 1, out=self.total)", "return x, None", init="self.total = np.zeros(1)"),
        "the attribute 'total' of layer mine1 (Mine) changes",
    ),
    "an array": (
        forward(
            "self.mean *= 0.9",
            "self.mean += 0.1 * x.mean()",
            "return x - self.mean, None",
            init="self.mean = np.zeros(1)",
        ),
        "the attribute 'mean' of layer mine1 (Mine) changes",
    ),
    "a buffer for backward": (
        forward("vars(self)['saved'] = x", "return x, None"),
        "the attribute 'saved' of layer mine1",
    ),
    "a first microbatch that is remembered": (
        forward(
            "self.first.setdefault('mean', x.mean())", "return x - self.first['mean'], None", init="self.first = {}"
        ),
        "the attribute 'first' of layer mine1",
    ),
    "a plain attribute": (forward("self.calls = 1", "return x, None"), "the attribute 'calls' of layer mine1 (Mine)"),
    "a count of the class": (
        forward("Mine.calls += 1", "return x, None", before="").replace("(Identity):", "(Identity):\n    calls = 0"),
        "the attribute 'calls' of class Mine changes",
    ),
    "a count of the module": (
        forward("global CALLS", "CALLS += 1", "return x * (CALLS < 1000), None", before="CALLS = 0"),
        "the attribute 'CALLS' of module net changes while the network computes",
    ),
    "a count of another class": (
        forward("Counter.calls += 1", "return x, None", before="class Counter:\n    calls = 0"),
        "the attribute 'calls' of class Counter changes",
    ),
    "a count of a function": (
        forward("scale.calls += 1", "return x, None", before="def scale():\n    pass\nscale.calls = 0"),
        "the attribute 'scale' of module net changes",
    ),
    "a default value": (
        "class Mine(Identity):\n    def forward(self, x, call, calls=[]):\n"
        "        calls.append(x[0, 0])\n        return x, None\n",
        "the attribute 'forward' of class Mine changes",
    ),
    "a closure": (
        "def counter():\n    count = 0\n    def more():\n        nonlocal count\n        count += 1\n"
        "        return count\n    return more\n"
        + forward("return x * (self.more() < 1000), None", init="self.more = counter()"),
        "the attribute 'more' of layer mine1 (Mine) changes",
    ),
    "a count beside a lock": (
        forward("self.state['calls'] += 1", "return x, None", init="self.state = {'lock': LOCK, 'calls': 0}")
        + "LOCK = threading.Lock()\n",
        "the attribute 'state' of layer mine1 (Mine) changes",
    ),
    "an object with a lock": (
        forward(
            "self.box.calls += 1",
            "return x, None",
            init="self.box = Box()",
            before="class Box:\n    def __init__(self):\n        self.lock, self.calls = threading.Lock(), 0",
        ),
        "the attribute 'box' of layer mine1 (Mine) changes",
    ),
    "an iterator": (
        forward("return x * next(NUMBERS), None", before="NUMBERS = itertools.count()"),
        "'NUMBERS' of module net",
    ),
    "a cycle": (
        forward("return x * next(ON), None", before="ON = itertools.cycle([1, 1, 1, 1])"),
        "'ON' of",
    ),
    "an object of the user's": (
        forward(
            "self.tally.calls += 1",
            "return x, None",
            init="self.tally = Tally()",
            before="class Tally:\n    __slots__ = ('calls',)\n    def __init__(self):\n        self.calls = 0",
        ),
        "'tally'",
    ),
    "a layer inside the layer": (
        forward("self.inner.calls = x.sum()", "return x, None", init="self.inner = Identity()"),
        "'inner'",
    ),
    "a buffer of the module": (
        forward(
            "np.multiply(x, 2, out=BUFFER[:, :, :x.shape[2]])",
            "return BUFFER[:, :, :x.shape[2]].copy(), None",
            before="BUFFER = np.zeros((6, 7, 64, 3), np.float32)",
        ),
        "the attribute 'BUFFER' of module net changes",
    ),
    "a sum in the workspace": (
        forward(
            "total = call.workspace.array(self.name, 'total', (1,), zeroed=True)",
            "total += x.sum()",
            "return x - total, None",
        ),
        "the result of forward of layer mine1 (Mine) is not the same",
    ),
    # In place
    "its input": (
        forward("x *= 2", "return x, None"),
        "mine1 (Mine) fails in forward: ValueError: output array is read-only",
    ),
    "its input in backward": (
        "class Mine(Identity):\n    def forward(self, x, call):\n        return x + 1, x\n"
        "    def backward(self, dy, x, call):\n        x *= dy\n        return dy\n",
        "mine1 (Mine) fails in backward: ValueError: output array is read-only",
    ),
    "its parameters": (
        "class Mine(Identity):\n    def tensors(self):\n        return [Tensor('scale', (1,), zeros)]\n"
        + forward("call.parameters['scale'] += 1", "return x, None").replace("\nclass Mine(Identity):\n", ""),
        "x, the parameters and the buffers are only read",
    ),
    # Mistakes
    "one value": (forward("return x"), "mine1 (Mine): forward returned float32 (6, 7, 4, 3), expected two values"),
    "another shape": (
        forward("return x[:-1], None"),
        "the output of forward is float32 (5, 7, 4, 3), expected an array of shape (6, 7, 4, 3)",
    ),
    "no array": (forward("return None, None"), "the output of forward is None"),
    "an exception": (forward("return x @ np.zeros((9, 9)), None"), "mine1 (Mine) fails in forward: ValueError: matmul"),
    "the program's end": (
        forward("raise SystemExit(0)"),
        "mine1 (Mine) fails in forward: SystemExit: 0 (net.py, line ",
    ),
    "no gradient of the input": (
        "class Mine(Identity):\n    def backward(self, dy, saved, call):\n        pass\n",
        "mine1 (Mine): backward returned None, expected the gradient of its input",
    ),
    "a gradient that is assigned": (
        "class Mine(Identity):\n    def tensors(self):\n        return [Tensor('scale', (1,), zeros)]\n"
        "    def backward(self, dy, saved, call):\n"
        "        call.gradients['scale'] = dy.sum()\n        return dy\n",
        "assigning to 'scale' has no effect: write into the array",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


@pytest.mark.parametrize("case", BROKEN)
def test_a_layer_whose_bits_depend_on_what_was_computed_before_is_refused(
    case: str, data: Path, tmp_path: Path
) -> None:
    """Found in the field: draws and mutable attributes gave other bits for each --threads, with status 0."""
    body, words = BROKEN[case]
    model = write(tmp_path / "net.py", body)
    with pytest.raises(ModelError) as caught:
        run(configuration(data, tmp_path / "run", model=model, model_options={}, max_steps=1))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 1
    assert not (tmp_path / "run").exists()


CLEAN = {
    "nothing special": forward("return x, None"),
    "own memory in place": forward("y = x + 1", "y *= 2", "return y, y"),
    "memory of the workspace": forward(
        "y = call.workspace.array(self.name, 'y', x.shape)", "np.tanh(x, out=y)", "return y, y"
    ),
    "dy in place": (
        "class Mine(Identity):\n    def backward(self, dy, saved, call):\n        dy *= 2\n        return dy\n"
    ),
    "lru_cache": forward(
        "return x * weights(x.shape[0]), None",
        before="@functools.lru_cache\ndef weights(n):\n    return np.ones((n, 1, 1, 1), np.float32)",
    ),
    "an import inside": forward("import json.tool", "return x, None"),
    "a fixed mask": forward(
        "return x * self.mask, None", init="self.mask = np.random.default_rng(0).random(3).astype(np.float32)"
    ),
    "a mask from the input": forward(
        "mask = np.random.default_rng(abs(int(x.sum()))).random(x.shape) > 0.5", "return x * mask.astype(x.dtype), None"
    ),
    "global draws while it is made": forward(
        "return x * self.mask, None", init="np.random.seed(3); self.mask = np.float32(np.random.random())"
    ),
    "a warning": forward(
        "import warnings; warnings.warn('own')",
        "return x, None",
        before="import warnings\nwarnings.simplefilter('ignore')",
    ),
    "a log": forward("LOG.debug('forward')", "return x, None", before="import logging\nLOG = logging.getLogger('own')"),
    "a lock": forward("with LOCK:\n            return x, None", before="LOCK = threading.Lock()"),
    "not finite": forward("return x * np.float32(np.nan), None"),
    "a parameter": (
        "class Mine(Identity):\n    def tensors(self):\n        return [Tensor('weight', (3,), he_uniform(1))]\n"
        "    def forward(self, x, call):\n        return x * call.parameters['weight'], x\n"
        "    def backward(self, dy, x, call):\n"
        "        call.gradients['weight'][...] = (dy * x).sum(axis=(0, 1, 2))\n"
        "        return dy * call.parameters['weight']\n"
    ),
    "prepared values": (
        "class Mine(Identity):\n    def prepare(self, parameters, workspace):\n        return {'two': np.float32(2)}\n"
        "    def forward(self, x, call):\n        return x * call.parameters['two'], None\n"
    ),
    "a subclass of a layer of dptrain": "class Mine(ReLU):\n    kind = 'mine'\n",
    "a memory of another package": forward(
        "POOL.submit(int).result()",
        "return x, None",
        before="from concurrent.futures import ThreadPoolExecutor\nPOOL = ThreadPoolExecutor(1)",
    ),
    "a function that contains itself": forward(
        "self.again(3)",
        "return x, None",
        init="self.again = again()",
        before="def again():\n    def inner(n):\n        return n and inner(n - 1)\n    return inner",
    ),
    "an input that is passed on": forward("return x[:], x"),
}


@pytest.mark.parametrize("case", CLEAN)
def test_a_layer_that_keeps_the_rules_is_not_suspected(case: str, data: Path, tmp_path: Path) -> None:
    architecture = find_architecture(write(tmp_path / "net.py", CLEAN[case]))
    network = Network(architecture.build((2, 6, 7), 5), (2, 6, 7))
    rng = np.random.default_rng(0)
    first, second = (
        (rng.standard_normal((6, 7, count, 2), dtype=np.float32), rng.integers(0, 5, count)) for count in (4, 40)
    )
    assert architecture.source is not None
    check_layers(network, network.initial(0), first, second, architecture.source.loaded)
    check_layers(network, network.initial(0), second, first, architecture.source.loaded, train=False)


def test_a_microbatch_without_samples_is_not_computed() -> None:
    network = Network([Flatten(), Linear(5)], (2, 6, 7))
    empty = (np.zeros((6, 7, 0, 2), np.float32), np.zeros(0, np.int64))
    check_layers(network, network.initial(0), empty, empty)


def test_a_synchronized_layer_may_get_one_sample_from_each_shard() -> None:
    network = Network([BatchNorm2d(sync=True), Flatten(), Linear(5)], (2, 1, 1))
    microbatch = (np.ones((1, 1, 1, 2), np.float32), np.zeros(1, np.int64))
    check_layers(network, network.initial(0), microbatch, microbatch)


def test_the_check_skips_networks_of_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = find_architecture("linear")
    network = Network(architecture.build((2, 6, 7), 5), (2, 6, 7))
    assert try_model(architecture, network, [], 0) == ""  # without any microbatch


@pytest.mark.slow
def test_an_evaluation_refuses_a_layer_that_draws(data: Path, tmp_path: Path) -> None:
    """Found in the field: two runs of `dptrain eval` gave different accuracies."""
    net = tmp_path / "net.py"
    model = write(net, forward("return x, None"))
    run(configuration(data, tmp_path / "run", model=model, model_options={}, max_steps=1))
    write(net, forward("mask = np.random.random(x.shape)", MASK))
    done = dptrain("eval", tmp_path / "run", data, "--model", model, cwd=tmp_path)
    assert done.returncode == 1
    assert "uses a global random generator" in done.stderr


@pytest.mark.mpi
@pytest.mark.once
def test_a_layer_that_draws_on_one_rank_stops_both(data: Path, tmp_path: Path) -> None:
    """Under mpirun: one line, status 1, nothing written."""
    rank = "import os\nRANK = int(os.environ.get('OMPI_COMM_WORLD_RANK') or os.environ.get('PMI_RANK') or 0)"
    body = forward("if RANK == 1:\n            np.random.random()", "return x, None", before=rank)
    words = flags(data, tmp_path / "run", model=write(tmp_path / "net.py", body), model_options={})
    done = dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("dptrain: error:") == 1
    assert "rank 1 on" in done.stderr
    assert "layer mine1 (Mine) uses a global random generator" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_in_a_layer_is_permanent_and_shows_its_traceback(data: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "net.py", forward("return x @ np.zeros((9, 9)), None"))
    done = train(data, tmp_path / "run", model=model, model_options={})
    assert done.returncode == 1
    assert done.stderr.startswith("dptrain: error: layer mine1 (Mine) fails in forward: ValueError: matmul")
    assert "Traceback (most recent call last)" in done.stderr
    assert "in forward" in done.stderr
    assert "/dptrain/" not in done.stderr  # only the user's frames
    assert_nothing_half_written(tmp_path)


def test_a_count_of_a_module_that_is_imported_late_is_found(data: Path, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("CALLS = 0\n")
    model = write(tmp_path / "net.py", forward("import late", "late.CALLS += 1", "return x, None"))
    with pytest.raises(ModelError, match="the attribute 'CALLS' of module late changes while the network computes"):
        run(configuration(data, tmp_path / "run", model=model, model_options={}, max_steps=1))
