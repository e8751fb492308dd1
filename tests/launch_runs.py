"""Running `python -m launch` from tests, and reading what it printed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from training_runs import flags

from launch.cleanup import segments

CHECKOUT = Path(__file__).resolve().parent.parent
OPEN_MPI, MPICH = "mpirun (Open MPI) 5.0.11", "HYDRA build details:"
# The launcher, with shorter pauses.
HASTY = (
    "import sys; from launch import __main__, signals, supervise; supervise.FIRST_PAUSE = 0.01; "
    "supervise.LONGEST_PAUSE = 0.04; "
    "signals.SAME_REQUEST = 0.2; sys.exit(__main__.main())"
)
LOOP = "for _ in $(seq 300); do sleep 0.05; done"  # ends by itself, also where a test fails


def ends(status: int, reason: str = "", *, retry: bool = False, **more: str) -> str:
    """A bash command with which a fake mpirun sends the run's status record."""
    record = shlex.quote(json.dumps({"token": "TOKEN", "status": status, "reason": reason, "retry": retry, **more}))
    return (
        f"record={record}; IFS=@ read -r token port _ <<<$DPTRAIN_LAUNCHER; exec 9<>/dev/tcp/127.0.0.1/$port; "
        'printf "%s\\n" "${record/TOKEN/$token}" >&9; read -r _ <&9; exec 9>&-'
    )


def run_launch(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start_launch(*arguments: str, hasty: bool = False, group: bool = False, **variables: str) -> subprocess.Popen[str]:
    """A running launcher; `group`: in this session, in a new process group, like a job of a shell."""
    program = ["-c", HASTY] if hasty else ["-m", "launch"]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=not group,
        process_group=0 if group else None,
    )


def first_output(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def only_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def wait_until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Whether the process with this id runs or is stopped; a zombie does not count."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def ranks_of(run_dir: Path) -> list[int]:
    """Process ids of the MPI ranks that train in a folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        names = {variable.partition(b"=")[0] for variable in environment.split(b"\0")}
        if str(run_dir).encode() in command and names & {b"OMPI_COMM_WORLD_RANK", b"PMI_RANK"}:
            found.append(int(folder.name))
    return found


def shared_memory_of(processes: Iterable[int]) -> set[Path]:
    """The segments of MPI that these processes map."""
    maps = "".join(Path(f"/proc/{process}/maps").read_text() for process in processes)
    return {path for path in segments() if str(path) in maps}


def start_training(data: Path, run_dir: Path, *options: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A long run on two real ranks, which has written a checkpoint; the launcher and its ranks."""
    trainer = ["train", *flags(data, run_dir, epochs=100_000, checkpoint_every=5, log_every=1000)]
    process = start_launch("-n", "2", *options, "--", *trainer)
    wait_until(lambda: list(run_dir.glob("checkpoints/step-*.h5")))
    ranks = ranks_of(run_dir)
    assert len(ranks) == 2
    return process, ranks
