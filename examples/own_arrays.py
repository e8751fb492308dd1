"""Train a network of your own on NumPy arrays: python examples/own_arrays.py [FOLDER]"""

import sys
from pathlib import Path

import numpy as np

import dptrain
from dptrain.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_arrays")
NAMES = ["dark top", "dark left", "even"]

# Grey images 16x16 with noise: two of the three classes have a darker half.
random = np.random.default_rng(0)
labels = random.integers(3, size=1500)
images = random.integers(100, 256, size=(1500, 16, 16), dtype=np.uint8)
images[labels == 0, :8] -= 30
images[labels == 1, :, :8] -= 30


def build(input_shape, classes, width=8):
    """A network is a function that returns layers. It gets (C, H, W), the number of classes, and `model_options`."""
    return [
        *(Conv2d(width, 3, padding=1), ReLU(), MaxPool2d(2)),
        *(Flatten(), Linear(classes)),
    ]


# A fifth of the images of each class becomes the test split.
data = dptrain.pack((images, labels), folder / "data", classes=NAMES, name="halves", force=True)
run = dptrain.train(
    data, model=build, model_options={"width": 4}, epochs=3, batch_size=64, output="quiet", run_dir=folder / "run"
)
evaluation = run.load().evaluate(data, predictions=True)
print("true class (row) and predicted class (column)")
for name, row in zip(NAMES, evaluation.predictions.confusion(len(NAMES)), strict=True):
    print(f"{name:>9}", *(f"{count:5}" for count in row))
