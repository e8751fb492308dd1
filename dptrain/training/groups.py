"""Groups of parameters: the names by which tables such as --group-lr address them.

A tensor has several names. In a table, the most specific one counts; this is their order:

    conv1.bias          the tensor alone
    conv1               its layer
    stem.bias, stem     the group that its layer declares, `Tensor(..., group="stem")`
    head.bias, head     in the last layer with parameters
    first.bias, first   in the first layer with parameters
    norm.bias, norm     in a normalisation
    bias                any bias that is not in a normalisation
    default             in none of these groups: the weights of hidden layers
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from dptrain.config.train import TrainConfig
from dptrain.errors import UsageError
from dptrain.nn.network import Network
from dptrain.nn.tensor import Tensor
from dptrain.optim.optimizer import Parameter
from dptrain.optim.schedule import Schedule, make_schedule, steps_of
from dptrain.system.keys import flag
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown
from dptrain.training.finetune import frozen_tensors

DEFAULT = "default"


def make_parameters(config: TrainConfig, network: Network, steps_per_epoch: int) -> list[Parameter]:
    """The network's parameters as an optimizer knows them; UsageError for an unknown group."""
    names = addresses(network)
    for key in ("group_lr", "group_decay", "group_epochs"):
        check_groups(flag(key), getattr(config, key), names.values())
    parameters, frozen = [], frozen_tensors(config.freeze, network)
    for name, groups in names.items():
        tensor = network.tensors[name]
        rate, decay = first_entry(config.group_lr, groups, 1.0), first_entry(config.group_decay, groups, tensor.decays)
        schedule = None
        if (epochs := first_entry(config.group_epochs, groups, -1.0)) >= 0:
            schedule = line_to_zero(config, steps_of(epochs, steps_per_epoch), steps_per_epoch)
        if not tensor.trained or name in frozen:
            rate, decay, schedule = 0, 0, None
        parameters.append(Parameter(name, tensor.shape, float(decay), float(rate), schedule, groups))
    if all(one.frozen(0) for one in parameters):
        raise UsageError(
            "--freeze, --group-lr and --group-epochs freeze all parameters from the start: there is nothing to train"
        )
    return parameters


def line_to_zero(config: TrainConfig, steps: int, steps_per_epoch: int) -> Schedule:
    """From --lr, after the run's warm-up, to 0 at `steps` and later."""
    if steps == 0:
        return lambda step: 0.0
    warmup = min(config.warmup(config.epochs * steps_per_epoch), steps - 1)
    return make_schedule("linear", config.lr, steps, warmup_steps=warmup)


def addresses(network: Network) -> dict[str, tuple[str, ...]]:
    """By full name of a parameter: the names that address it, the most specific first."""
    kinds = {layer.name: layer.kind for layer in network.layers}
    layers = [name.rpartition(".")[0] for name in network.layout.shapes]
    found = {}
    for name, layer in zip(network.layout.shapes, layers, strict=True):
        tensor = network.tensors[name]
        groups = list(_groups(tensor, kinds[layer], head=layer == layers[-1], first=layer == layers[0]))
        pairs = [address for group in groups for address in (f"{group}.{tensor.name}", group)]
        bias = ["bias"] if tensor.name == "bias" and kinds[layer] != "norm" else []
        found[name] = (name, layer, *pairs, *(bias or [] if groups or bias else [DEFAULT]))
    return found


def _groups(tensor: Tensor, kind: str, *, head: bool, first: bool) -> Iterator[str]:
    if tensor.group != DEFAULT:
        yield tensor.group
    if head:
        yield "head"
    if first:
        yield "first"
    if kind == "norm":
        yield "norm"


def first_entry(table: Mapping[str, Any], groups: Iterable[str], otherwise: float) -> float:
    """The value of the most specific name that is in the table."""
    return next((table[group] for group in groups if group in table), otherwise)


def check_groups(name: str, table: Mapping[str, Any], known: Collection[tuple[str, ...]]) -> None:
    """UsageError if the table of a flag has a name that addresses no parameter."""
    names = {group for groups in known for group in groups}
    for group in table.keys() - names:
        groups = ", ".join(sorted(name for name in names if "." not in name))
        hint = did_you_mean(group, names, f"known: {shown(groups, 300)}, and single tensors such as {min(known)[0]}")
        raise UsageError(f"{name}: the network has no group {shown(repr(group), 60)}; {hint}")
