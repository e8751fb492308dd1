"""Fine-tuning: initial values from a file (--init-from), and tensors that training does not change (--freeze)."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.checkpoint.pretrained import Pretrained, read_pretrained
from dptrain.errors import CheckpointError, UsageError
from dptrain.nn.network import Network
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown

LONGEST = 400  # characters of a list of tensors
COUNTER = ".num_batches_tracked"  # of PyTorch's normalisations, which dptrain does not need


def frozen_tensors(patterns: str, network: Network) -> set[str]:
    """The full names of the parameters and buffers that --freeze chooses.

    A pattern, with `*` and `?`, chooses the tensors of the layers whose names it matches, and the tensors whose full
    names it matches. UsageError if it chooses none.
    """
    frozen: set[str] = set()
    for pattern in patterns.split(",") if patterns else []:
        chosen = {name for name in network.tensors if _chooses(pattern.strip(), name)}
        if not chosen:
            layers = [*dict.fromkeys(name.rpartition(".")[0] for name in network.tensors)]
            known = f"layers with tensors: {shown(', '.join(layers), 300)}"
            hint = did_you_mean(pattern, [*layers, *network.tensors], known)
            raise UsageError(f"--freeze: the network has no layer or tensor {shown(repr(pattern), 60)}; {hint}")
        frozen |= chosen
    return frozen


def _chooses(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def read_initial_values(init_from: str, network: Network, note: Callable[[str], None]) -> dict[str, Array]:
    """By full name, the tensors of the file of --init-from that fit the network; `note` gets a report for people.

    CheckpointError if the file cannot be read or no tensor fits.
    """
    wanted: dict[str, Shape] = {**network.layout.shapes, **network.buffer_layout.shapes}
    found = read_pretrained(Path(init_from), wanted, note)
    what = f"--init-from {shown(init_from)}"
    if not found.tensors:
        theirs = ", ".join(f"{name} {shape}" for name, shape in found.shapes.items())
        ours = ", ".join(f"{name} {shape}" for name, shape in wanted.items())
        raise CheckpointError(
            f"{what}: no tensor has the name and shape of one of the network's; it has {shown(theirs or 'none', 200)}; "
            f"expected {shown(ours, 200)}: give the --model that it was trained with"
        )
    for line in _report(found, wanted):
        note(f"{what}: {line}")
    return found.tensors


def _report(found: Pretrained, wanted: dict[str, Shape]) -> list[str]:
    """What was taken and what was not, one line each."""
    identity = f"params_sha256 {shown(found.params_sha256, 80)}" if found.params_sha256 else "no params_sha256"
    lines = [f"{len(found.tensors)} of {len(wanted)} tensors taken ({identity})"]
    kept = [
        f"{name} {shape}" + (f" (there {found.shapes[name]})" if name in found.shapes else "")
        for name, shape in wanted.items()
        if name not in found.tensors
    ]
    unused = [name for name in found.shapes if name not in wanted and not name.endswith(COUNTER)]
    for text, names in (("fresh initial values", kept), ("not used", unused)):
        if names:
            lines.append(f"{text}: {shown(', '.join(names), LONGEST)}")
    return lines
