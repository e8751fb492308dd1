"""dptrain.checkpoint.writer: each checkpoint has the state at its call, one is written at a time, no error is lost."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import LAYOUTS, ORIGIN
from failing_files import FailingOS
from selection import quick_first
from training_runs import STEPS_PER_EPOCH, Memory, configuration, packed, run

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import read_checkpoint
from dptrain.checkpoint.state import Progress, TrainingState
from dptrain.checkpoint.writer import CheckpointWriter
from dptrain.config.train import TrainConfig
from dptrain.errors import CheckpointError
from dptrain.parallel.communicator import Communicator
from dptrain.system import durable
from dptrain.training.events import Event, StepFinished
from dptrain.training.loop import train


def state_of(step: int) -> TrainingState:
    vectors = {name: np.full(layout.size, step, np.float32) for name, layout in LAYOUTS.items()}
    return TrainingState(vectors, Progress(step=step))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    yield folder
    folder.close()


@pytest.fixture
def writer(folder: RunFolder) -> Iterator[CheckpointWriter]:
    writer = CheckpointWriter(folder, ORIGIN, LAYOUTS, TrainConfig())
    yield writer
    writer.close(lambda line: None)


class Gate:
    """Blocks every write until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.waiting, save = threading.Event(), threading.Semaphore(0), RunFolder.save

        def held(folder: RunFolder, *arguments: Any) -> Path:
            self.waiting.release()
            assert self.opened.wait(30)
            return save(folder, *arguments)

        monkeypatch.setattr(RunFolder, "save", held)


def test_the_written_state_is_that_of_the_moment_of_the_call(
    writer: CheckpointWriter, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, state = Gate(monkeypatch), state_of(5)
    writer.submit(state)
    for vector in state.vectors.values():
        vector[:] = 99
    state.progress.step = 99
    gate.opened.set()
    writer.wait()
    found = read_checkpoint(folder.checkpoint_of(5)).state
    assert (set(found.parameters), set(found.vectors["momentum"]), found.step) == ({5.0}, {5.0}, 5)


def test_a_second_checkpoint_waits_for_the_first(
    writer: CheckpointWriter, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    writer.submit(state_of(1))
    assert gate.waiting.acquire(timeout=30)
    second = threading.Thread(target=writer.submit, args=(state_of(2),))
    second.start()
    assert not gate.waiting.acquire(timeout=0.2), "two are written at the same time"
    gate.opened.set()
    second.join(30)
    writer.wait()
    assert [path.name for path in folder.numbered()] == ["step-00000001.h5", "step-00000002.h5"]


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of step 5 is blocked until step 6 is done: if training waited, it would hang."""
    gate = Gate(monkeypatch)
    folder = RunFolder(tmp_path / "run")

    class Opening(Memory):
        def handle(self, event: Event) -> None:
            if isinstance(event, StepFinished) and event.step == STEPS_PER_EPOCH - 1:
                assert folder.numbered() == []
                gate.opened.set()

    config = configuration(packed(tmp_path / "set"), folder.path, checkpoint_every="5", max_steps=7)
    train(config, Communicator(), [Opening()])
    assert [path.name for path in folder.numbered()] == ["step-00000005.h5", "step-00000007.h5"]


def test_an_error_is_kept_and_nothing_is_written_after_it(
    writer: CheckpointWriter, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", FailingOS(2, errno.ENOSPC))
        writer.submit(state_of(1))
        writer.submit(state_of(2))
        assert writer.failed
    writer.submit(state_of(3))
    with pytest.raises(CheckpointError, match=r"step-00000001\.h5: cannot be written: No space left"):
        writer.wait()
    assert folder.numbered() == []


def wait_for_failure(files: FailingOS) -> None:
    deadline = time.monotonic() + 30
    while not files.has_failed:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(0.2)  # until the thread has reported it


# The first and the last call are for launch/test.sh --quick.
@quick_first("failing", [pytest.param(call, marks=[pytest.mark.slow] * (1 < call < 8)) for call in range(1, 9)])
def test_a_run_whose_disk_fails_ends_at_the_next_step_and_can_be_resumed(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file call of the checkpoint of step 4 fails in turn; the whole run has 14 steps."""
    data = packed(tmp_path / "set")
    run(configuration(data, tmp_path / "run", max_steps=3))
    files = FailingOS(failing, errno.ENOSPC)

    class Breaking(Memory):
        def handle(self, event: Event) -> None:
            super().handle(event)
            if isinstance(event, StepFinished) and event.step == 4:
                monkeypatch.setattr(durable, "os", files)
            if isinstance(event, StepFinished) and event.step == 5:
                wait_for_failure(files)  # such a step takes less time than to write a checkpoint

    memory = Breaking()
    config = configuration(data, tmp_path / "run", checkpoint_every="4")
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left.*Free some space"):
        train(config, Communicator(), [memory])
    assert files.has_failed
    assert memory.steps[-1][0] in (5, 6)  # 5 when it failed before that step began
    monkeypatch.undo()
    whole = "replace" in files.made[: failing - 1]  # in this case the sync of the folder failed
    there = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert there == {"best.h5", "step-00000003.h5"} | ({"step-00000004.h5"} if whole else set())
    summary, again = run(config)
    assert again.steps[0][0] == (5 if whole else 4)
    undisturbed, _ = run(configuration(data, tmp_path / "whole"))
    assert summary["params_sha256"] == undisturbed["params_sha256"]


def test_closing_waits_for_pending_writes(folder: RunFolder) -> None:
    writer = CheckpointWriter(folder, ORIGIN, LAYOUTS, TrainConfig())
    writer.submit(state_of(3))
    writer.close(pytest.fail)
    assert read_checkpoint(folder.checkpoint_of(3)).state.step == 3


def test_an_error_that_nobody_waits_for_is_reported_at_the_end(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, when training itself fails before the next step."""
    lines: list[str] = []
    writer = CheckpointWriter(folder, ORIGIN, LAYOUTS, TrainConfig())
    monkeypatch.setattr(durable, "os", FailingOS(2, errno.ENOSPC))
    writer.submit(state_of(3))
    writer.close(lines.append)
    assert [line[:13] for line in lines] == ["not written: "]
    assert "step-00000003.h5" in lines[0]
