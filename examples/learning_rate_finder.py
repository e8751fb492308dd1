"""Choose a learning rate by short runs: python examples/learning_rate_finder.py [FOLDER]

The rates are compared on the validation split. Do not choose on the test split: its accuracy would then be too
optimistic.
"""

import sys
from pathlib import Path

import dptrain
from dptrain.errors import TrainingError

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/learning_rate_finder")
RATES = (0.0001, 0.001, 0.01, 0.1)
SETTINGS = {"model": "linear", "batch_size": 64, "output": "none", "report": False}  # a linear model, as it is fast


def train(rate, name, epochs):
    return dptrain.train(data, lr=rate, epochs=epochs, run_dir=folder / name, **SETTINGS)


def validation_loss(rate):
    """The validation loss after a short run; infinite if training fails, as with a rate that is far too high."""
    try:
        return train(rate, f"lr-{rate}", epochs=2).result["validation_loss"]
    except TrainingError as error:
        print(error)
        return float("inf")


data = dptrain.pack("shapes", folder / "shapes", train=1600, test=400, validation_fraction=0.2, force=True)
losses = {rate: validation_loss(rate) for rate in RATES}
print("learning rate  validation loss")
for rate, loss in losses.items():
    print(f"{rate:13}  {loss:15.4f}")
best = min(losses, key=losses.get)
run = train(best, "chosen", epochs=6)
print(f"chosen: {best}, test accuracy after 6 epochs with it: {run.result['test_accuracy']:.1%}")
