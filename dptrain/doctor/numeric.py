"""NumPy, its BLAS, and a fixed computation. These checks run in a process of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dptrain.doctor.finding import Check, Finding, failure, ok, warning
from dptrain.doctor.software import OLDEST, is_older
from dptrain.system.blas import KERNEL_VARIABLE, ensure_one_thread, missing_instructions

if TYPE_CHECKING:
    from dptrain.config.train import TrainConfig
    from dptrain.data.loading import LocalShards
    from dptrain.data.manifest import Manifest

REMEDY = f"install NumPy again: pip install --force-reinstall 'numpy>={OLDEST['numpy']}'; unset {KERNEL_VARIABLE}"
SHAPE, CLASSES, SHARDS, BATCH_SIZE, STEPS = (3, 32, 32), 10, 2, 16, 2
# Two networks: between them they use every kind of convolution, batch normalisation, two optimizers.
NETWORKS: tuple[dict[str, Any], ...] = (
    {"model": "convnet"},
    {"model": "airbench", "model_options": {"widths": [8, 16, 16]}, "optimizer": "muon", "lr": 0.01},
)


def checks() -> list[Check]:
    return [
        Check("NumPy", check_numpy, REMEDY),
        Check("BLAS", check_blas, "install NumPy from PyPI with pip: it has OpenBLAS"),
        Check("computation", check_computation, "see the lines above; if they are all ok, report this as a mistake"),
    ]


def check_numpy() -> Finding:
    """The NumPy that is imported."""
    import numpy as np

    text = f"{np.__version__}, {os.path.dirname(np.__file__ or '')}"  # noqa: PTH120 - for people
    if is_older(np.__version__, OLDEST["numpy"]):
        return failure(text, f"dptrain needs NumPy {OLDEST['numpy']} or later: pip install 'numpy>={OLDEST['numpy']}'")
    return ok(text, numpy=np.__version__)


def check_blas() -> Finding:
    """The BLAS of NumPy, its kernels, and that it obeys the limit of one thread."""
    import numpy.linalg  # noqa: F401 - loads the BLAS

    found = ensure_one_thread()
    kernels = os.environ.get(KERNEL_VARIABLE)
    text = f"{found['blas']}, {found['blas_core']} kernels, one thread a shard"
    if kernels:
        text += f" ({KERNEL_VARIABLE}={kernels})"
    if found["blas"] == "unknown":
        remedy = "training may be slow, and its bits may vary: install NumPy from PyPI with pip, it has OpenBLAS"
        return warning("a BLAS whose threads cannot be limited", remedy, **found)
    if missing := missing_instructions():
        remedy = "training works, but is slower, and --portable is not possible on this CPU"
        return warning(f"{text}; the CPU has no {' and no '.join(missing)}", remedy, **found)
    return ok(text, **found)


def check_computation() -> Finding:
    """Train small networks on fixed images, twice: the same bits each time."""
    from dptrain.config.train import TrainConfig
    from dptrain.training.agreement import numeric_environment

    environment = numeric_environment(TrainConfig())
    first, second = (fixed_training() for _ in range(2))
    if first != second:
        return failure(
            f"the same training steps gave two results: SHA-256 {first[:16]} and {second[:16]}",
            "suspect the memory or the CPU of this machine: test both, and do not train on it",
        )
    text = f"{STEPS} training steps of {len(NETWORKS)} networks: SHA-256 {first[:16]}"
    return ok(text, sha256=first, environment=environment)


def fixed_training() -> str:
    """SHA-256 of the states after some steps on fixed images: the same wherever training gives the same bits."""
    import hashlib

    from dptrain.config.train import TrainConfig
    from dptrain.system.cache import DEFAULT_KIB

    digest = hashlib.sha256()
    for values in NETWORKS:
        config = TrainConfig(batch_size=BATCH_SIZE, threads=1, l2_kib=DEFAULT_KIB, **values)
        digest.update(_train(config).encode())
    return digest.hexdigest()


def _train(config: TrainConfig) -> str:
    """The digest of the state after some steps, through the engine of `dptrain train`."""
    from contextlib import closing

    from dptrain.parallel.communicator import Communicator
    from dptrain.parallel.placement import Placement
    from dptrain.training.agreement import numeric_environment
    from dptrain.training.architecture import build_network, find_architecture
    from dptrain.training.initial import first_state
    from dptrain.training.session import Task, assemble, make_batches
    from dptrain.training.update import make_update

    architecture, manifest, data = find_architecture(config.model), *_fixed_data()
    network = build_network(architecture, config.model_options, SHAPE, CLASSES)
    network.set_cache(config.l2_kib)
    placement, environment = Placement(SHARDS, 1), numeric_environment(config)
    task = Task(Communicator(), manifest, placement, data, architecture, network, config.threads, environment)
    engine = assemble(config, task, make_batches(config, manifest, data), make_update(config, network, STEPS))
    with closing(engine.pool):
        state = first_state(engine, engine.take_step.layouts, config.seed)
        for step in range(STEPS):
            engine.take_step(state, 0, step, config.lr)
    return state.digest()


def _fixed_data() -> tuple[Manifest, LocalShards]:
    """Images that do not depend on the version of NumPy."""
    import numpy as np

    from dptrain.arrays.random import Purpose, random_words
    from dptrain.data.loading import LocalShards
    from dptrain.data.manifest import REQUIRED, Manifest, Provenance, ShardEntry
    from dptrain.data.shard import Samples

    count = BATCH_SIZE // SHARDS * STEPS
    names, mean, std = tuple(map(str, range(CLASSES))), (0.5,) * SHAPE[0], (0.29,) * SHAPE[0]
    splits = dict.fromkeys(REQUIRED, (ShardEntry("", 0, count, ""),) * SHARDS)
    manifest = Manifest("fixed", names, SHAPE, mean, std, 0, Provenance("random"), splits)
    shards = {}
    for shard in range(SHARDS):
        words = random_words(0, Purpose.SAMPLE_ORDER, shard, count * int(np.prod(SHAPE)) // 8)
        images = words.astype("<u8").view(np.uint8).reshape(count, *SHAPE)
        shards[shard] = Samples(images, np.arange(count) % CLASSES, np.arange(count))
    return manifest, LocalShards(shards, {0: shards[0]}, {})
