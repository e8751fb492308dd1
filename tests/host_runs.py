"""Runs on the hosts and the Slurm that tests/hosts/*.sh make on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch_runs import CHECKOUT

SCRIPTS = Path(__file__).parent / "hosts"


def script(name: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run tests/hosts/NAME; it must succeed."""
    done = subprocess.run(
        [str(SCRIPTS / name), *arguments], capture_output=True, text=True, timeout=timeout, check=False, env=variables()
    )
    assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def variables() -> dict[str, str]:
    """The environment of commands on a host: sessions of MPI are on the host's disk."""
    state = os.environ.get("DPTRAIN_HOSTS", "/tmp/dptrain-hosts")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    made = {**os.environ, "PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(CHECKOUT), "TMPDIR": "/mnt"}
    return made | {"SLURM_CONF": f"{state}/slurm.conf", "PRTE_MCA_prte_tmpdir_base": "/mnt"}


def on(node: int, *command: str, timeout: float = 60) -> str:
    """Standard output of a command on a node, which must succeed."""
    return script("hosts.sh", "on", str(node), *command, timeout=timeout).stdout.strip()


def kill_on(node: int, pattern: str) -> None:
    """SIGKILL to the processes of a node whose command line matches; there must be one."""
    on(node, "pkill", "-9", "-f", pattern)


def start_on(node: int, *command: str, stdout: int, stderr: int) -> subprocess.Popen[str]:
    """Start a command on a node, from the checkout."""
    return subprocess.Popen(
        [str(SCRIPTS / "hosts.sh"), "on", str(node), *command],
        cwd=CHECKOUT, env=variables(), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
    )  # fmt: skip


@contextmanager
def several_hosts(count: int) -> Iterator[None]:
    """Hosts and Slurm that run within the block. Fails if they cannot be started."""
    script("hosts.sh", "down")
    try:
        script("hosts.sh", "up", str(count))
        script("slurm_cluster.sh", "up", str(count))
        yield
    finally:
        script("hosts.sh", "down")


def revive(node: int) -> None:
    """Start a node that has crashed, with its slurmd."""
    script("hosts.sh", "start", str(node))
    script("slurm_cluster.sh", "slurmd", str(node))


def wait_for(holds: Callable[[], object], explain: Callable[[], object], seconds: float) -> float:
    """Wait until the condition is true and return the seconds. `explain` describes a failure."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {explain()}"
        time.sleep(0.1)
    return time.monotonic() - started


def events(run_dir: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl so far."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def reached(run_dir: Path) -> int:
    """The last step that the run has logged, -1 before the first."""
    return max((int(str(event["step"])) for event in events(run_dir) if event["event"] == "step"), default=-1)


def starts(run_dir: Path) -> list[int]:
    """The steps at which the run has been started or resumed."""
    return [int(str(event["step"])) for event in events(run_dir) if event["event"] == "start"]


@dataclass
class SlurmJob:
    """A job of launch/slurm.sh, by its number."""

    number: str
    run_dir: Path
    output: Path

    @property
    def shown(self) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        words = on(1, "scontrol", "--oneliner", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def state(self) -> str:
        return self.shown["JobState"]

    @property
    def printed(self) -> str:
        """The output of the job, without its steps."""
        lines = self.output.read_text(errors="replace").splitlines() if self.output.exists() else []
        return "\n".join(line for line in lines if not line.startswith(("step ", "epoch ")))

    def wait_for_state(self, *states: str, seconds: float = 120) -> str:
        wait_for(lambda: self.state in states, lambda: (states, self.state, self.printed), seconds)
        return self.state

    def wait_for_step(self, step: int, seconds: float = 60) -> None:
        wait_for(lambda: reached(self.run_dir) >= step, lambda: (self.shown, self.printed), seconds)


def sbatch(run_dir: Path, words: list[str], *options: str) -> SlurmJob:
    """Submit launch/slurm.sh with a command line of train, on one rank a node."""
    output = run_dir.with_name(f"{run_dir.name}.out")
    spread = ("--nodes=2", "--ntasks=2", "--ntasks-per-node=1", f"--output={output}", f"--chdir={CHECKOUT}")
    number = on(1, "sbatch", "--parsable", *spread, *options, str(CHECKOUT / "launch" / "slurm.sh"), *words)
    return SlurmJob(number, run_dir, output)
