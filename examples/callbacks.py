"""A metric and callbacks of your own: python examples/callbacks.py [FOLDER]"""

import sys
from pathlib import Path

import numpy as np

import dptrain

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/callbacks")


def macro_f1(predictions):
    """The mean F1 score of the classes. The arrays `labels` and `predicted` hold a class number for each image."""
    scores = []
    for label in np.unique(predictions.labels):
        true, found = predictions.labels == label, predictions.predicted == label
        scores.append(2 * (true & found).sum() / (true.sum() + found.sum()))
    return np.mean(scores)


class WeightNorm(dptrain.Callback):
    """Logs the norm of all parameters after each evaluation, so after each epoch."""

    def on_evaluation(self, training, evaluation):
        parameters = training.parameters.values()
        training.log("weight norm", np.sqrt(sum((values**2).sum() for values in parameters)))


class StopAt(dptrain.Callback):
    """Ends the run when the validation accuracy is high enough."""

    def __init__(self, accuracy):
        self.accuracy = accuracy

    def on_evaluation(self, training, evaluation):
        if evaluation.validation_accuracy >= self.accuracy:
            training.stop(f"validation accuracy {evaluation.validation_accuracy:.1%}")


data = dptrain.pack("shapes", folder / "shapes", train=800, test=200, validation_fraction=0.2, force=True)
run = dptrain.train(
    data,
    model="linear",
    epochs=10,
    batch_size=32,
    lr=0.001,
    metrics={"macro F1": macro_f1},
    callbacks=[WeightNorm(), StopAt(0.2)],
    run_dir=folder / "run",
)
for line in run.metrics:  # also in metrics.jsonl, in report.html, and in TensorBoard with report_to="tensorboard"
    print(f"epoch {line['epoch']}: {line['name']} {line['value']:.3f}")
