"""dptrain.training.update: groups, Muon and the mean gradient together make the steps of airbench94_muon.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dptrain.config.files import merged
from dptrain.config.recipes import read_recipe
from dptrain.config.train import TrainConfig
from dptrain.nn import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, Network, ReLU, Scale
from dptrain.nn.tensor import Tensor
from dptrain.training.architecture import build_network
from dptrain.training.update import make_update

BATCH, STEPS_PER_EPOCH, EPOCHS, FROZEN_AFTER = 2000, 2, 4, 3
MUON_LR, BIAS_LR, HEAD_LR, DECAY = 0.24, 0.053, 0.67, 2e-6 * BATCH  # of the gradient of the summed loss


class Whitening(Conv2d):
    """A convolution whose weight is not trained."""

    def tensors(self) -> list[Tensor]:
        weight, bias = super().tensors()
        return [Tensor("weight", weight.shape, weight.init, trainable=False), bias]


class Norm(BatchNorm2d):
    """A normalisation whose scale is not trained."""

    def tensors(self) -> list[Tensor]:
        tensors = [one for one in super().tensors() if one.name != "weight"]
        return [Tensor("weight", tensors[0].shape, lambda shape, words: 1.0, trainable=False), *tensors]


def network() -> Network:
    body = [Conv2d(6, 3, bias=False), Norm(), ReLU(), Conv2d(5, 3, bias=False), Norm(), ReLU()]
    return Network([Whitening(4, 2), *body, Flatten(), Linear(3, bias=False)], (3, 8, 8))


def config() -> TrainConfig:
    """The recipe, for fewer epochs."""
    return merged(read_recipe("airbench94-muon"), {"epochs": EPOCHS})


def published(start: dict[str, Any], gradients: list[dict[str, Any]]) -> dict[str, Any]:
    """The parameters after all steps by the published formulas, with PyTorch's SGD, in float64."""
    import torch  # here, so that other tests run without it

    p = {name: torch.tensor(values, dtype=torch.float64) for name, values in start.items()}
    others = {name: BIAS_LR for name in p if name.endswith("bias")} | {"linear1.weight": HEAD_LR}
    groups: list[Any] = [
        {"params": [p[name]], "lr": lr, "weight_decay": DECAY / lr, "initial_lr": lr, "name": name}
        for name, lr in others.items()
    ]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    buffers = {name: torch.zeros_like(p[name]) for name in ("conv2.weight", "conv3.weight")}
    for step, gradient in enumerate(gradients):
        whitening = 1 - step / (FROZEN_AFTER * STEPS_PER_EPOCH)
        falling = 1 - step / (EPOCHS * STEPS_PER_EPOCH)
        for group in sgd.param_groups:
            name, frozen = group["name"], group["name"] == "conv1.bias" and whitening <= 0
            group["lr"] = group["initial_lr"] * (whitening if name == "conv1.bias" else falling)
            p[name].grad = None if frozen else torch.tensor(gradient[name], dtype=torch.float64)
        sgd.step()
        for name, buffer in buffers.items():
            g = torch.tensor(gradient[name], dtype=torch.float64)
            buffer.mul_(0.6).add_(g)
            g = g.add(buffer, alpha=0.6)
            p[name].mul_(len(p[name]) ** 0.5 / p[name].norm())
            x = g.reshape(len(g), -1)
            x = x / (x.norm() + 1e-7)
            for _ in range(3):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            p[name].sub_(MUON_LR * falling * x.reshape(g.shape))
    return p


@pytest.mark.slow
def test_the_recipe_airbench94_muon_gives_the_published_steps() -> None:
    pytest.importorskip("torch")
    built, generator = network(), np.random.default_rng(0)
    update, layout = make_update(config(), built, STEPS_PER_EPOCH), built.layout
    vectors = {name: vector.copy() for name, vector in built.initial(0).items()}
    vectors["momentum"] = np.zeros_like(vectors["parameters"])
    start = {name: view.copy() for name, view in layout.views(vectors["parameters"]).items()}
    summed: list[dict[str, Any]] = []
    for step in range(EPOCHS * STEPS_PER_EPOCH):
        gradient = generator.standard_normal(layout.size, dtype=np.float32)
        for name in ("conv1.weight", "norm1.weight", "norm2.weight", *update.optimizer.frozen(step)):
            gradient[layout.slices[name]] = 0  # as the network computes it
        summed.append({name: view.copy() for name, view in layout.views(gradient).items()})
        update.step(vectors, gradient / BATCH, MUON_LR * (1 - step / (EPOCHS * STEPS_PER_EPOCH)), step)
    for name, expected in published(start, summed).items():
        found = layout.views(vectors["parameters"])[name]
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-4, atol=2e-5, err_msg=name)
        assert np.array_equal(found, start[name]) == (name in ("conv1.weight", "norm1.weight", "norm2.weight"))


def test_the_recipe_airbench94_muon_has_the_published_network_and_data() -> None:
    recipe = merged(read_recipe("airbench94-muon"))
    assert (recipe.epochs, recipe.batch_size, recipe.label_smoothing) == (8, BATCH, 0.2)
    assert (recipe.crop, recipe.crop_pixels, recipe.alternating_flip) == ("reflect", 2, True)
    assert (recipe.schedule, recipe.warmup_steps, recipe.tta) == ("linear", 0, "mirror-translate")
    layers = build_network(recipe.model, recipe.model_options, (3, 32, 32), 10).layers
    norms = [layer for layer in layers if isinstance(layer, BatchNorm2d)]
    assert [norm.channels for norm in norms] == [64, 64, 256, 256, 256, 256]
    assert {(norm.eps, norm.momentum, norm.scale) for norm in norms} == {(1e-12, 0.4, False)}
    assert [layer.kernel_size for layer in layers if isinstance(layer, MaxPool2d)] == [(2, 2), (2, 2), (2, 2), (3, 3)]
    head, scale = layers[-2:]
    assert isinstance(head, Linear)
    assert not head.bias
    assert isinstance(scale, Scale)
    assert scale.factor == 1 / 256
