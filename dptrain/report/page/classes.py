"""Confusion matrix, precision and recall."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.report.confusion import MOST_CLASSES, frequent_confusions
from dptrain.report.page.facts import PageFacts
from dptrain.report.page.figures import percent
from dptrain.report.page.markup import Html, element, join, missing_note, scrolled, table
from dptrain.report.page.pictures import Picture, data_uri

MOST_CELLS = 25  # classes of a matrix with figures; a larger one is a picture
MOST_PAIRS = 6
BLUE, ORANGE = np.array([29, 95, 174]), np.array([203, 87, 8])

Matrix = NDArray[np.int64]


def section(facts: PageFacts) -> Html:
    """What the network predicts for each class of the test split."""
    if facts.predictions is None or facts.checkpoint is None:
        return missing_note(f"Confusion matrix, precision and recall are left out: {facts.missing['predictions']}.")
    names = facts.checkpoint.origin.classes
    if len(names) > MOST_CLASSES:
        return missing_note(
            f"The confusion matrix, precision and recall are left out: there are more than {MOST_CLASSES:,} classes."
        )
    matrix = facts.predictions.confusion(len(names))
    pairs = [
        [names[true], names[found], f"{samples:,}", percent(samples / matrix[true].sum(), 1)]
        for true, found, samples in frequent_confusions(matrix, MOST_PAIRS)
    ]
    head = ["class", "predicted as", "samples", "of the class"]
    small = len(names) <= MOST_CELLS
    by_class = class_table(matrix, names)
    frequent = table("Most frequent mistakes", head, pairs, texts=(1,)) if pairs else missing_note("No mistakes.")
    if small:
        return element("div", confusion_table(matrix, names), element("div", by_class, frequent), class_="pair")
    folded = element("details", element("summary", f"All {len(names):,} classes"), by_class)
    return join([element("div", confusion_picture(matrix), frequent, class_="pair"), folded])


def class_table(matrix: Matrix, names: tuple[str, ...]) -> Html:
    """Precision: of the samples predicted as a class, those that are of it. Recall: of a class, those found."""
    right, true, found = np.diagonal(matrix).tolist(), matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()
    rows = []
    for name, correct, samples, predicted in zip(names, right, true, found, strict=True):
        recall = correct / samples if samples else None
        bar = element("i", style=f"width:{100 * (recall or 0):.1f}%")
        meter = element("span", bar, class_="meter", aria_hidden="true")
        precision = percent(correct / predicted if predicted else None, 1)
        rows.append([name, precision, join([meter, percent(recall, 1)]), f"{samples:,}"])
    return table("Precision and recall by class", ["class", "precision", "recall", "samples"], rows)


def confusion_table(matrix: Matrix, names: tuple[str, ...]) -> Html:
    """The matrix with figures; the color of a cell is its share of the true class."""
    rows = []
    for true, (name, counts) in enumerate(zip(names, matrix.tolist(), strict=True)):
        total = max(1, sum(counts))
        cells = (
            element(
                "td",
                f"{samples:,}" if samples else "·",
                class_="right" if found == true else "wrong" if samples else "none",
                style=f"--share:{samples / total:.3f}",
            )
            for found, samples in enumerate(counts)
        )
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    head = element("tr", *(element("th", name, scope="col") for name in ("true class", *names)))
    caption = "Confusion matrix: a row is a true class, a column a predicted class"
    whole = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *rows),
        class_="confusion",
    )
    return scrolled("Confusion matrix", whole)


def confusion_picture(matrix: Matrix) -> Html:
    """The matrix as a picture of one pixel a cell."""
    alt = f"Confusion matrix of {len(matrix)} classes: rows are true classes, columns predicted classes"
    image = element("img", src=data_uri(colored(matrix)), alt=alt, class_="matrix small")
    caption = "Confusion matrix: rows are true classes, columns predicted classes; blue is right, orange is wrong"
    return element("figure", element("figcaption", caption), image, class_="chart")


def colored(matrix: Matrix) -> Picture:
    """Pixels (K, K, 3): white for no sample, darker for a larger share of the true class."""
    shares = np.sqrt(matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True)))[:, :, None]
    colors = np.where(np.eye(len(matrix), dtype=bool)[:, :, None], BLUE, ORANGE)
    pixels: Picture = np.rint(255 - shares * (255 - colors)).astype(np.uint8)
    return pixels
