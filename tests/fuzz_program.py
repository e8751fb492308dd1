"""Fuzzes one reader with atheris: inputs that reach new code are kept and changed further.

    python tests/fuzz_program.py FORMAT SECONDS FOLDER

It ends with status 0 after SECONDS, and otherwise at the first fault: an exception other than DptrainError, an input
that takes 20 seconds, or 512 MiB more of memory. The input of a fault is in FOLDER, and counts are in figures.json.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1])]
INSTRUMENTED = ["data_prep", "dptrain", "tarfile", "zipfile", "pickle", "gzip", "csv", "json", "numpy.lib"]
with atheris.instrument_imports(include=INSTRUMENTED):
    from fuzz_targets import TARGETS

    import data_prep.pack
    import data_prep.sources.csv
    import data_prep.sources.idx
    import data_prep.sources.npz  # noqa: F401

MEMORY = 512 << 20  # bytes that reading may add; the inputs are of a few KiB
LONGEST_INPUT = 64 << 10  # bytes
SECONDS = 20  # for one input


def main() -> None:
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    target = TARGETS[name](Path(tempfile.mkdtemp(dir=folder)))
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        assert target.accepts(seed), (name, number)
        (corpus / f"seed-{number}").write_bytes(seed)
    words = folder / "words.txt"
    escaped = ("".join(map("\\x{:02x}".format, word)) for word in target.words)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    outcomes = Counter[bool]()

    def fuzz(data: bytes) -> None:
        outcomes[target.accepts(data)] += 1
        if outcomes.total() % 100 == 0:  # the end of libFuzzer is the end of the process
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            figures = {"read": outcomes[True], "refused": outcomes[False], "most_mib": memory}
            (folder / "figures.json").write_text(json.dumps(figures))

    flags = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", f"-timeout={SECONDS}", "-len_control=20"]
    flags += [f"-artifact_prefix={folder}/", *([f"-dict={words}"] if target.words else []), "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], fuzz)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
