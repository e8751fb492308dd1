"""Random gradients for tests of optimizers, and the same parameters for PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array
from dptrain.optim.optimizer import Parameter

SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "linear.weight": (5, 7), "linear.bias": (5,)}
LAYOUT = Layout(SHAPES)
PARAMETERS = [Parameter(name, shape, decay=float(name.endswith("weight"))) for name, shape in SHAPES.items()]
STEPS = 20


def random_run(seed: int) -> tuple[Array, list[Array], list[float]]:
    """Parameters (P,), and for each of 20 steps a gradient (P,) and a learning rate."""
    generator = np.random.default_rng(seed)
    parameters = generator.standard_normal(LAYOUT.size, dtype=np.float32)
    gradients = [generator.standard_normal(LAYOUT.size, dtype=np.float32) for _ in range(STEPS)]
    return parameters, gradients, generator.uniform(0.01, 0.2, STEPS).tolist()


def pytorch_groups(parameters: Array, weight_decay: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parameters as tensors in float64, by name, and as PyTorch's groups with their weight decay."""
    import torch  # here, so that other tests run without it

    views = LAYOUT.views(parameters)
    tensors = {name: torch.tensor(view.astype(np.float64), requires_grad=True) for name, view in views.items()}
    groups = [
        {"params": [tensor], "weight_decay": weight_decay if name.endswith("weight") else 0.0}
        for name, tensor in tensors.items()
    ]
    return tensors, groups
