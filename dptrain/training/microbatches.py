"""Steps of an epoch, and the number of samples in their microbatches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from dptrain.data.manifest import Manifest
from dptrain.errors import UsageError
from dptrain.nn.layer import CoupledLayer, Layer, where
from dptrain.nn.network import divided


def count_steps(manifest: Manifest, batch_size: int) -> int:
    """Steps an epoch: as many as the largest shard has microbatches, the same on every rank."""
    shards = manifest.shard_count
    if batch_size % shards:
        below = batch_size // shards * shards
        raise UsageError(
            f"--batch-size {batch_size} is not a multiple of the {shards} shards of the data set; the nearest that "
            f"are: {f'{below} and ' if below else ''}{below + shards}"
        )
    return -(-max(_samples(manifest)) // (batch_size // shards))


def check_microbatches(
    layers: Iterable[Layer], manifest: Manifest, batch_size: int, accumulate: int, steps: int
) -> None:
    """UsageError if a layer gets too few samples in one of the first `steps` of an epoch.

    Without this check, a run would fail in the last step of its first epoch, whose microbatches are smaller.
    """
    for layer in layers:
        if not isinstance(layer, CoupledLayer) or (least := layer.least_samples()) < 2:
            continue
        for step, parts in _sizes(manifest, batch_size, accumulate, steps):
            if layer.synchronized:
                count = min(sum(part) for part in zip_longest(*parts, fillvalue=0))
                found = f"all shards together have {count}"
            else:
                count = min(size for part in parts for size in part)
                found = f"a shard has {count}"
            if count < least:
                smaller = ", or a smaller --accumulate" if accumulate > 1 else ""
                raise UsageError(
                    f"--batch-size {batch_size}: {where(layer)} needs at least {least} samples at a time; in step "
                    f"{step + 1} of an epoch {found}. Choose another --batch-size{smaller}"
                )


def _sizes(manifest: Manifest, batch_size: int, accumulate: int, steps: int) -> Iterator[tuple[int, list[list[int]]]]:
    """By step, the samples in each part of each shard's microbatch; of the full steps, only the first."""
    shards, size = _samples(manifest), batch_size // manifest.shard_count
    for step in (0, *range(max(1, min(shards) // size), steps)):
        microbatches = [min(size, samples - step * size) for samples in shards if samples > step * size]
        yield step, [[part.stop - part.start for part in divided(one, min(one, accumulate))] for one in microbatches]


def _samples(manifest: Manifest) -> list[int]:
    return [entry.samples for entry in manifest.splits["train"]]
