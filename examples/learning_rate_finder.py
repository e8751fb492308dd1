"""Choose a learning rate by short runs: python examples/learning_rate_finder.py [FOLDER]

The validation split judges. The test split must not: a rate that is chosen on it makes the test accuracy too good.
"""

import sys
from pathlib import Path

import dptrain
from dptrain.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/learning_rate_finder")
RATES = (0.001, 0.01, 0.1)


def build(input_shape, classes):
    return [
        *(Conv2d(16, 5, stride=2, padding=2), ReLU()),
        *(Conv2d(32, 3, padding=1), ReLU(), MaxPool2d(2)),
        *(Flatten(), Linear(classes)),
    ]


def train(rate, name, epochs):
    return dptrain.train(
        data, model=build, lr=rate, epochs=epochs, batch_size=64, output="none", run_dir=folder / name, report=False
    )


def validation_loss(rate):
    """The validation loss after a short run; infinite if training fails, as with a rate that is far too high."""
    try:
        return train(rate, f"lr-{rate}", epochs=2).result["validation_loss"]
    except dptrain.DptrainError as error:
        print(error)
        return float("inf")


data = dptrain.pack("shapes", folder / "shapes", train=1000, test=200, validation_fraction=0.2, force=True)
losses = {rate: validation_loss(rate) for rate in RATES}
print("learning rate  validation loss")
for rate, loss in losses.items():
    print(f"{rate:13}  {loss:15.4f}")
best = min(losses, key=losses.get)
run = train(best, "chosen", epochs=5)
print(f"chosen: {best}, test accuracy after 5 epochs with it: {run.result['test_accuracy']:.1%}")
