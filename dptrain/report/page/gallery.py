"""Samples that the network gets wrong, and its first filters, as pictures."""

from __future__ import annotations

from dptrain.report.page.facts import PageFacts
from dptrain.report.page.figures import percent
from dptrain.report.page.markup import Html, element, join, missing_note
from dptrain.report.page.pictures import data_uri


def mistakes(facts: PageFacts) -> Html:
    """The wrong predictions with the highest probabilities, as pictures."""
    if "mistakes" in facts.missing or facts.checkpoint is None:
        return missing_note(f"The pictures are left out: {facts.missing['mistakes']}.")
    if not facts.mistakes:
        return missing_note("The network makes no mistake on the test split.")
    names = facts.checkpoint.origin.classes
    items = []
    for one in facts.mistakes:
        height, width = one.picture.shape[:2]
        found, true = names[one.predicted], names[one.label]
        image = element(
            "img",
            src=data_uri(one.picture),
            width=width,
            height=height,
            alt=f"test sample {one.index}: {true}, predicted as {found}",
            class_="small" if max(height, width) <= 64 else None,
        )
        text = [element("strong", f"{found} {percent(one.probability, 1)}"), element("span", f"true: {true}")]
        items.append(element("li", image, *text, element("span", f"no. {one.index:,}")))
    lead = f"The {len(items)} wrong predictions with the highest probability. The number is the sample's in its source."
    return join([element("p", lead, class_="lead"), element("ul", *items, class_="pictures")])


def filters(facts: PageFacts) -> Html:
    """The filters of the first convolution as pictures."""
    if not facts.filters:
        return missing_note(f"The filters are left out: {facts.missing['filters']}.")
    shown = len(facts.filters)
    height, width = facts.filters[0].shape[:2]
    size = {"width": width, "height": height, "class_": "small"}
    pictures = [element("img", src=data_uri(one), alt="", **size) for one in facts.filters]
    number = f"The first {shown} of {facts.filter_count} filters" if shown < facts.filter_count else f"{shown} filters"
    lead = f"{number} of {height} x {width} pixels. Grey is 0; each filter is scaled to its largest absolute value."
    label = f"{shown} filters of the first convolution"
    box = element("div", *pictures, class_="filters", role="img", aria_label=label)
    return join([element("p", lead, class_="lead"), box])
