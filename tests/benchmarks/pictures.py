"""How fast pictures are decoded: bare Pillow against the decoding of `dptrain prep images`, with 1 process and more.

    python tests/benchmarks/pictures.py FOLDER [--runs 5]

FOLDER has a folder for each class. Each run decodes every picture: with Pillow alone in this process, and with the
packing's own processes, which also store the pixels. It prints pictures per second, medians of runs in turn, and the
largest memory of this process and its children.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from data_prep.pictures.containers import opened
from data_prep.pictures.decode import Form, is_picture
from data_prep.pictures.decoding import decode_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parsed = parser.parse_args()
    with opened(parsed.folder) as container, tempfile.TemporaryDirectory() as out:
        numbers = [number for number, name in enumerate(container.files) if is_picture(name)]
        paths = [parsed.folder / container.files[number] for number in numbers]
        form = Form((3, 32, 32))

        def bare() -> None:
            for path in paths:
                with Image.open(path) as image:
                    np.asarray(image.convert("RGB"))

        def packed(processes: int) -> None:
            decode_all(container.contents, numbers, form, Path(out), processes)

        cores = len(os.sched_getaffinity(0))
        ways: dict[str, Callable[[], None]] = {"Pillow": bare}
        ways |= {f"{count} processes": partial(packed, count) for count in sorted({1, cores})}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(parsed.runs):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                rates[name].append(len(paths) / (time.perf_counter() - started))
    for name, found in rates.items():
        against = median(one / other for one, other in zip(found, rates["Pillow"], strict=True))
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"{name:<12} {median(found):9,.0f} pictures/s ({spread}), {against:.2f} times Pillow alone")
    for who, kind in (("this process", resource.RUSAGE_SELF), ("a child", resource.RUSAGE_CHILDREN)):
        print(f"memory of {who}: at most {resource.getrusage(kind).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
