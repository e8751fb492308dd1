"""An architecture for tests: a small network around any layer of the list in dptrain.nn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from dptrain import nn
from dptrain.nn.network import Network

# Arguments of the layers that need some.
ARGUMENTS: dict[str, Callable[[], list[Any]]] = {
    "Conv2d": lambda: [3, 3],
    "Dropout": lambda: [0.3],
    "Linear": lambda: [6],
    "MaxPool2d": lambda: [2],
    "Scale": lambda: [0.25],
    "ZeroPadShortcut": lambda: [6],
}
BASES = (nn.Layer, nn.Activation)
LISTED = {name: getattr(nn, name) for name in nn.__all__ if isinstance(getattr(nn, name), type)}
LAYERS = sorted(name for name, kind in LISTED.items() if issubclass(kind, nn.Layer) and kind not in BASES)


def build(input_shape: tuple[int, int, int], classes: int, *, layer: str) -> list[nn.Layer]:
    """A convolution, unless the layer must be the first, the layer, and a linear layer, with Flatten where needed."""
    for before, flat_behind in itertools.product((["Conv2d"], ["Conv2d", "Flatten"], []), (True, False)):
        layers: list[nn.Layer] = [nn.Conv2d(4, 3, padding=1) if name == "Conv2d" else nn.Flatten() for name in before]
        layers += [LISTED[layer](*ARGUMENTS.get(layer, list)()), *([nn.Flatten()] if flat_behind else [])]
        layers += [nn.Linear(classes)]
        try:
            Network(layers, input_shape)
        except ValueError:
            continue
        return layers
    raise ValueError(f"{layer} does not fit before a linear layer")
