"""A training step of dptrain's convnet in JAX, compiled by jit: prints images per second as JSON.

python jax.py --batch 64 [--widths 32 64] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))  # in this folder, the name of this file would hide the library
os.environ["JAX_PLATFORMS"] = "cpu"

STEPS, WARM_UP = 60, 10
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.001, 0.9, 5e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    # XLA takes its threads from the cores that the process may run on.
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.threads]))
    import jax
    import jax.numpy as jnp
    from jax import lax

    key = jax.random.key(0)
    parameters: list[tuple[Any, Any]] = []
    channels, size = 3, 32
    for width in options.widths:
        parameters.append((0.1 * jax.random.normal(key, (3, 3, channels, width)), jnp.zeros(width)))
        channels, size = width, size // 2
    parameters.append((0.01 * jax.random.normal(key, (size * size * channels, 10)), jnp.zeros(10)))

    def loss(parameters: Any, images: Any, labels: Any) -> Any:
        x = images
        for weight, bias in parameters[:-1]:
            x = lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = lax.reduce_window(jax.nn.relu(x + bias), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        weight, bias = parameters[-1]
        logits = jax.nn.log_softmax(x.reshape(len(x), -1) @ weight + bias)
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    def make_step(parameters: Any, velocity: Any, images: Any, labels: Any) -> Any:
        gradient = jax.grad(loss)(parameters, images, labels)
        gradient = jax.tree.map(lambda g, p: g + WEIGHT_DECAY * p, gradient, parameters)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
        look_ahead = jax.tree.map(lambda g, v: g + MOMENTUM * v, gradient, velocity)
        return jax.tree.map(lambda p, d: p - LEARNING_RATE * d, parameters, look_ahead), velocity

    compiled = jax.jit(make_step)

    images = jax.random.normal(key, (options.batch, 32, 32, 3))
    labels = jax.random.randint(key, (options.batch,), 0, 10)
    velocity = jax.tree.map(jnp.zeros_like, parameters)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        parameters, velocity = jax.block_until_ready(compiled(parameters, velocity, images, labels))
        seconds.append(time.perf_counter() - started)
    rate = options.batch / statistics.median(seconds[WARM_UP:])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"images_per_second": rate, "peak_memory_mib": memory, "version": jax.__version__}))


if __name__ == "__main__":
    main()
