"""Images per second and peak memory of dptrain's training step against PyTorch, TensorFlow and JAX.

    python tests/benchmarks/against_peers.py [--work convnet-64 ...] [--peers pytorch ...] [--runs 5] [--avx2]

Each peer is installed when needed in a separate environment below ~/.cache/dptrain/peers (--environments), at the
version written below. Each run is a new process on as many cores as it has threads, and all take turns, so
that a drift of the machine's speed affects all of them. Each does the whole step: forward, backward, SGD with
Nesterov momentum and weight decay. dptrain also gathers, casts and normalises its microbatches from shards of uint8
images and adds up their gradients; the peers get one ready float32 batch. The network of the recipe airbench94-muon has
the recipe's 250 samples a shard; TensorFlow and JAX have no program for it, nor for ResNet-20.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import urllib.request
import venv
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
REQUIREMENTS = {"pytorch": "torch==2.13.0", "tensorflow": "tensorflow-cpu==2.21.0", "jax": "jax==0.10.2"}


@dataclass(frozen=True)
class Work:
    """The common task: a network of these widths, one thread for each process."""

    batch: int
    widths: tuple[int, ...] = (32, 64)
    processes: int = 1
    network: str = "convnet"
    options: str = "widths = [{}]"  # of dptrain's model, with a place for the widths
    shards: int = 8
    steps: int = 60

    def can_be_done_by(self, peer: str) -> bool:
        return peer == "pytorch" or (self.processes == 1 and self.network == "convnet")


AIRBENCH = Work(
    500,
    (64, 256, 256),
    network="airbench",
    options="widths = [{}], logit_scale = 0.00390625, unit_head = true",
    shards=2,
    steps=6,
)

RESNET20 = Work(128, (16,), network="resnet20", options="width = {}", steps=12)


WORKS = {
    "convnet-64": Work(64),
    "convnet-128": Work(128),
    "convnet-128-on-2": Work(128, processes=2),
    "wide-64": Work(64, (64, 128, 256)),
    "airbench": AIRBENCH,
    "airbench-on-2": replace(AIRBENCH, processes=2),
    "resnet20": RESNET20,
    "resnet20-on-2": replace(RESNET20, processes=2),
}


@dataclass
class Contender:
    """A command that prints JSON, and what it has printed."""

    name: str
    command: list[str]
    cores: int
    rates: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def run(self) -> None:
        allowed = set(sorted(os.sched_getaffinity(0))[: self.cores])  # some libraries use more than one thread
        start = partial(os.sched_setaffinity, 0, allowed)
        done = subprocess.run(self.command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=start)
        figures = json.loads(done.stdout.splitlines()[-1])
        self.rates.append(figures["images_per_second"])
        memory = figures["peak_memory_mib"]
        self.memory.append(max(memory) if isinstance(memory, list) else memory)


def contenders(work: Work, pythons: dict[str, str]) -> list[Contender]:
    """dptrain first, then each peer that can do the work, once for each of its settings."""
    widths = [str(width) for width in work.widths]
    steps = ["--steps", str(work.steps)]
    bench = ["bench", "step", "--json", "--threads", "1", "--batch-size", str(work.batch), "--shards", str(work.shards)]
    bench += [*steps, "--model", work.network, "--model-options", work.options.format(", ".join(widths))]
    start = ["-m", "launch", "-n", str(work.processes), "--"] if work.processes > 1 else ["-m", "dptrain"]
    entered = [Contender("dptrain", [sys.executable, *start, *bench], work.processes)]
    for peer, python in pythons.items():
        if not work.can_be_done_by(peer):
            continue
        command = [python, str(PEERS / f"{peer}.py"), "--batch", str(work.batch), "--widths", *widths]
        if peer == "pytorch":
            command += ["--network", work.network, *steps]
            for layout in ("contiguous", "channels_last"):
                more = ["--layout", layout, "--processes", str(work.processes)]
                entered.append(Contender(f"pytorch {layout}", [*command, *more], work.processes))
        else:
            entered.append(Contender(peer, command, work.processes))
    return entered


def install(peer: str, folder: Path) -> str:
    """The Python of the peer's environment, which is created if it does not exist."""
    environment = folder / REQUIREMENTS[peer]
    python = environment / "bin" / "python"
    done = environment / "installed"
    if not done.exists():
        print(f"Installing {REQUIREMENTS[peer]} into {environment} (once)", file=sys.stderr)
        venv.create(environment, with_pip=True, clear=True)
        wanted = [REQUIREMENTS[peer], "numpy", *(cpu_builds() if peer == "pytorch" else [])]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.touch()
    return str(python)


def cpu_builds() -> list[str]:
    """pip's arguments for PyTorch's index of CPU builds, if it can be reached; the default build includes CUDA."""
    try:
        urllib.request.urlopen(CPU_BUILDS + "/torch/", timeout=5).close()
    except OSError:
        return []
    return ["--extra-index-url", CPU_BUILDS]


def report(entered: list[Contender]) -> None:
    """One line each: median images/s and spread, dptrain's ratio to it run by run, peak memory."""
    dptrain = entered[0]
    for contender in entered:
        ratios = [ours / theirs for ours, theirs in zip(dptrain.rates, contender.rates, strict=True)]
        print(
            f"  {contender.name:<22}{statistics.median(contender.rates):>8,.0f} images/s "
            f"({min(contender.rates):,.0f} to {max(contender.rates):,.0f})  "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
            f"{statistics.median(contender.memory):,.0f} MiB"
        )


AVX2 = {  # as on a CPU without AVX-512
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--peers", nargs="+", choices=REQUIREMENTS, default=list(REQUIREMENTS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "dptrain" / "peers")
    parser.add_argument("--avx2", action="store_true", help="hold NumPy, OpenBLAS and PyTorch to AVX2")
    options = parser.parse_args()
    if options.avx2:
        if options.peers != ["pytorch"]:
            parser.error("--avx2 holds only PyTorch of the peers to AVX2: give --peers pytorch")
        os.environ.update(AVX2)
    pythons = {peer: install(peer, options.environments) for peer in options.peers}
    for name in options.work:
        work = WORKS[name]
        entered = contenders(work, pythons)
        for _ in range(options.runs):
            for contender in entered:
                contender.run()
        print(f"{name}: {work.network}, batch {work.batch}, widths {list(work.widths)}, {work.processes} x 1 thread")
        report(entered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
