"""A training step of dptrain's convnet in TensorFlow, compiled by tf.function: prints images per second as JSON.

python tensorflow.py --batch 64 [--widths 32 64] [--threads 1]
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
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf

STEPS, WARM_UP = 60, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.random.set_seed(0)
    keras = tf.keras
    layers: list[Any] = [keras.Input((32, 32, 3))]
    for width in options.widths:
        layers += [keras.layers.Conv2D(width, 3, padding="same", activation="relu"), keras.layers.MaxPool2D(2)]
    network = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])
    optimizer = keras.optimizers.SGD(0.001, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = tf.random.normal((options.batch, 32, 32, 3))
    labels = tf.random.uniform((options.batch,), 0, 10, tf.int32)

    def make_step() -> Any:
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, network.trainable_variables), network.trainable_variables, strict=True)
        )
        return loss

    compiled = tf.function(make_step)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        compiled().numpy()
        seconds.append(time.perf_counter() - started)
    rate = options.batch / statistics.median(seconds[WARM_UP:])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"images_per_second": rate, "peak_memory_mib": memory, "version": tf.__version__}))


if __name__ == "__main__":
    main()
