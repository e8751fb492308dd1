"""The pictures, by name, that reporters send to other tools at the end of a run."""

from __future__ import annotations

from pathlib import Path

from dptrain.report.confusion import MOST_CLASSES
from dptrain.report.drawing import confusion_picture, sheet
from dptrain.report.page.facts import DEFAULTS, PageFacts, facts_of
from dptrain.report.page.figures import percent
from dptrain.report.page.pictures import Picture
from dptrain.training.events import RunFinished

SAMPLE, FILTER = 96, 48  # pixels: the side up to which they are enlarged


def pictures(event: RunFinished) -> dict[str, Picture]:
    """Pictures (H, W, 3) of the last evaluation by name; {} if it has no predictions.

    They show the facts of report.html. Those that are missing there are left out: the filters of a network without
    convolution, mistakes if there are none.
    """
    if event.predictions is None:
        return {}
    facts = facts_of(Path(event.run_dir), DEFAULTS, event.predictions)
    if facts.checkpoint is None:
        return {}
    names, found = facts.checkpoint.origin.classes, {}
    if len(names) <= MOST_CLASSES:
        found["test/confusion"] = confusion_picture(event.predictions.confusion(len(names)), names)
    if facts.mistakes:
        found["test/mistakes"] = _mistakes(facts, names)
    if facts.filters:
        found["network/first_filters"] = _filters(facts)
    return found


def _mistakes(facts: PageFacts, names: tuple[str, ...]) -> Picture:
    captions = [
        (names[one.predicted], f"true: {names[one.label]}", f"{percent(one.probability, 1)}, no. {one.index:,}")
        for one in facts.mistakes
    ]
    title = f"The {len(captions)} wrong predictions with the highest probability"
    notes = ["Predicted class, true class, probability, and the sample's number in its source."]
    return sheet(title, notes, [one.picture for one in facts.mistakes], captions, columns=6, side=SAMPLE)


def _filters(facts: PageFacts) -> Picture:
    title = f"Filters of the first convolution: {len(facts.filters)} of {facts.filter_count}"
    notes = ["Grey is 0; each filter is scaled to its largest absolute value."]
    return sheet(title, notes, facts.filters, [()] * len(facts.filters), columns=8, side=FILTER)
