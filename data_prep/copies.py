"""Finds images that occur in two splits, or in two classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dptrain.system.text import shown

from .images import LabelledImages


class Fingerprints:
    """Hashes of 64 bits of the pixels of all images that are packed.

    That two of ten million different images have the same hash has a probability of 3 in a million.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[NDArray[np.uint64], NDArray[np.intp]]]] = {}

    def add(self, split: str, images: NDArray[np.uint8], rows: NDArray[np.intp]) -> None:
        """Add images (n, C, H, W), which have these numbers (n,) in their source."""
        digests = b"".join(hashlib.blake2b(image.data, digest_size=8).digest() for image in images)
        self._found.setdefault(split, []).append((np.frombuffer(digests, np.uint64), rows))

    def notes(self, parts: Mapping[str, LabelledImages]) -> list[str]:
        """What a user should know about these sources of the splits."""
        splits = [split for split, found in self._found.items() for _ in found]
        found = [one for several in self._found.values() for one in several]
        hashes = np.concatenate([one for one, _ in found])
        rows = np.concatenate([one for _, one in found])
        split_of = np.repeat(splits, [len(one) for one, _ in found])
        labels = np.concatenate([parts[split].labels[one] for split, (_, one) in zip(splits, found, strict=True)])

        def names(*places: np.intp) -> str:
            given = ((split_of[place], rows[place], parts[split_of[place]].names) for place in places)
            return " and ".join(
                f"{split} image {row}" if name is None else shown(name[row], 200) for split, row, name in given
            )

        notes = []
        for split, other in combinations(self._found, 2):
            originals, others = np.flatnonzero(split_of == split), np.flatnonzero(split_of == other)
            copies = others[np.isin(hashes[others], hashes[originals])]
            if len(copies):
                original = originals[hashes[originals] == hashes[copies[0]]][0]
                what = f"exact copies of {split} images in the {other} split: {len(copies):,}"
                notes.append(f"{what}, such as {names(copies[0], original)}")
        order = np.lexsort((labels, hashes))  # equal images are neighbours, in the order of their classes
        mixed = (hashes[order][1:] == hashes[order][:-1]) & (labels[order][1:] != labels[order][:-1])
        if mixed.any():
            first = np.flatnonzero(mixed)[0]
            count = len(np.unique(hashes[order][1:][mixed]))
            notes.append(f"images in more than one class: {count:,}, such as {names(*order[first : first + 2])}")
        return notes
