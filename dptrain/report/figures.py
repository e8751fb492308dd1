"""The curves that reporters for other tools draw: a name with its value, for each event."""

from __future__ import annotations

from dptrain.training.events import EvaluationFinished, Event, MetricLogged, RunFinished, StepFinished


def figures(event: Event) -> dict[str, float]:
    """The figures of a logged step, an evaluation, or the end of a run, by name; {} for any other event."""
    match event:
        case StepFinished(logged=True):
            found = {"train/loss": event.loss, "train/accuracy": event.accuracy, "train/lr": event.lr}
            if event.images_per_second is not None:
                found["train/images_per_second"] = event.images_per_second
            return found | {f"seconds/{name}": value for name, value in event.seconds.items()}
        case EvaluationFinished(repeated=False):
            found = {
                "epoch/loss": event.loss,
                "epoch/accuracy": event.accuracy,
                "test/loss": event.test_loss,
                "test/accuracy": event.test_accuracy,
                "seconds/evaluation": event.evaluation_seconds,
            }
            if event.validation_loss is not None and event.validation_accuracy is not None:
                found |= {"validation/loss": event.validation_loss, "validation/accuracy": event.validation_accuracy}
            return found
        case MetricLogged():
            return {f"metrics/{event.name}": event.value}
        case RunFinished(tta_accuracy=float(accuracy), tta_loss=float(loss)):
            return {"tta/loss": loss, "tta/accuracy": accuracy}
    return {}
