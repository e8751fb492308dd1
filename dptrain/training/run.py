"""A run on one rank: started, resumed from a checkpoint, or continued without ranks that have died."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dptrain.arrays.memory import Array
from dptrain.checkpoint.folder import KEPT, RunFolder
from dptrain.checkpoint.state import TrainingState
from dptrain.checkpoint.writer import CheckpointWriter
from dptrain.config.files import to_toml
from dptrain.config.train import TrainConfig
from dptrain.data.loading import NOTHING_LOADED
from dptrain.errors import UsageError
from dptrain.health.interruption import Interruption
from dptrain.parallel.communicator import Communicator, known_to_all, together
from dptrain.parallel.watch import Watch
from dptrain.system.durable import write_durably
from dptrain.system.text import shown
from dptrain.training.agreement import agree_on, check_replicas, without_paths
from dptrain.training.architecture import Architecture
from dptrain.training.events import CheckpointSaved, CheckpointStarted, RanksLost, RunStarted
from dptrain.training.finetune import read_initial_values
from dptrain.training.finite import check_finite
from dptrain.training.initial import first_state
from dptrain.training.reporting import RunReport
from dptrain.training.resume import Found, check_resumable, find_checkpoint, l2_kib_of_checkpoint
from dptrain.training.session import Session, set_up
from dptrain.training.step import Requests
from dptrain.training.timeline import FILE, WARM_UP, Timeline

CLAIM_PATIENCE = 10.0  # seconds: the kernel frees a dead rank's folder a little after the others learn of its death


class Run:
    """What a rank keeps of a run; after the death of other ranks, `begin` is called again with the survivors.

    Only rank 0 holds the folder and has a writer. `saved_step`, the same on all ranks, is the step of the newest
    checkpoint that is written or being written. `lost` are the ranks that have died since the last step.

    `architecture` is given where it is a function in Python, not one that `config.model` names. With `all_predictions`
    each evaluation has the prediction for each sample, with the probabilities of all classes.
    """

    session: Session
    state: TrainingState
    timeline: Timeline

    def __init__(
        self,
        config: TrainConfig,
        report: RunReport,
        architecture: Architecture | None = None,
        *,
        all_predictions: bool = False,
    ) -> None:
        self.config, self.report, self.all_predictions = config, report, all_predictions
        self.folder = RunFolder(Path(config.run_dir), config.keep_best)
        self.resumed: Path | None = None
        self.writer: CheckpointWriter | None = None
        self.saved_step = -1
        self._reported_step = -1  # of the newest checkpoint that reporters know
        self.began = False
        self.lost: list[int] = []
        self._noticed = 0.0
        self._loaded = NOTHING_LOADED
        self._architecture = architecture  # kept: the model file may change during the run
        self._until_ranks_change = ExitStack()

    def survivors(self, communicator: Communicator) -> Communicator:
        """After a RankLostError, on all ranks that are alive: their communicator."""
        if not self.lost:
            self._noticed = time.perf_counter()
        fewer = communicator.survivors()
        self.lost += sorted(set(communicator.world_ranks) - set(fewer.world_ranks))
        return fewer

    def begin(self, communicator: Communicator, interruption: Interruption) -> None:
        """Prepare the next step, together with all ranks of the communicator; from now on signals wait for the step.

        DptrainError on all ranks if that is not possible. After a RankLostError it is called again with the survivors.
        """
        self._until_ranks_change.close()
        self.report.rank = communicator.rank
        agree_on("configuration", without_paths(self.config), communicator)  # the rest depends on it
        if self.config.elastic and not communicator.survives:
            error = UsageError(
                f"--elastic needs ULFM, which {communicator.implementation} does not have here: start with dptrain "
                "launch --elastic or mpirun --with-ft ulfm (Open MPI 5), or use dptrain launch --max-restarts K"
            )
            raise known_to_all(communicator, error)
        limit, abort = self.config.stall_limit, self.config.stall_abort
        if limit:
            watch = Watch(communicator, limit=limit, abort=abort, end=communicator.end_job)
            self._until_ranks_change.callback(watch.close)
        communicator.activity.enter("loading data")
        self.timeline = Timeline(self.config.timeline, communicator)
        l2_kib = max(communicator.allgather(self._known_l2_kib(communicator)))
        self.session = set_up(self.config, communicator, self._loaded, self._architecture, l2_kib)
        self._until_ranks_change.callback(self.session.pool.close)
        self._loaded, self._architecture = self.session.shards, self.session.architecture
        if not self._continue_after_deaths(communicator):
            self._open(communicator)
        if communicator.rank == 0 and self.writer is None:
            layouts = self.session.take_step.layouts
            self.writer = CheckpointWriter(self.folder, self.session.origin, layouts, self.config)
        facts = self.report.begin(self.session, self.state, self.folder)
        if not self.began:
            interruption.begin_deferring()
            self.report.emit(RunStarted(facts, self.state.step, str(self.resumed) if self.resumed else None))
        if self.lost:
            seconds = round(time.perf_counter() - self._noticed, 4)
            self.report.emit(RanksLost(facts, self.state.step, self.lost, seconds))
        self.report.measure()  # reporters may have taken a while to start
        self.began, self.lost = True, []

    def _known_l2_kib(self, communicator: Communicator) -> int:
        """The size of the cache that the run computes for: this rank's since it has begun, or the checkpoint's; or 0.

        The network, and the workers that have it, are made before the checkpoint is opened.
        """
        if self.began:
            return self.session.network.l2_kib
        return l2_kib_of_checkpoint(self.config) if communicator.rank == 0 else 0

    def _continue_after_deaths(self, communicator: Communicator) -> bool:
        """Continue with the state of those ranks that have begun the run; False if no rank has.

        A step is made on all ranks or on none (`Communicator.confirm`), so their states are the same to the bit. Other
        ranks may have lost the run before it began for them, and receive it here.
        """
        begun = communicator.allgather(self.began)
        if not any(begun):
            return False
        root = begun.index(True)
        mine = (self.state, self.folder.path, self.resumed) if communicator.rank == root else None
        state, path, self.resumed = communicator.broadcast(mine, root)
        self.state = state.copy()  # what MPI received is not aligned
        # Evaluated again: the only rank that knew the figures may have died before they were saved.
        self.state.progress.test_accuracy = self.state.progress.validation_accuracy = None
        self.saved_step = -1  # some ranks may have learned of the death before a `save`, others after it
        if not self.began:
            self.folder.close()  # it was opened, but some ranks died before they knew of it
            self.folder = RunFolder(path, self.config.keep_best)
        with together(communicator):
            if communicator.rank == 0 and self.folder.held is None:
                self.folder.claim(patience=CLAIM_PATIENCE)
                self.folder.remember_all()
                if not self.folder.config.exists():  # the disk of the run folder was on a host that is lost
                    self._write_config()
                    self.report.note(
                        f"the run continues in {shown(path.absolute())} on {socket.gethostname()}, a new folder: "
                        "the earlier checkpoints are on the host that was lost"
                    )
        return True

    def _write_config(self) -> None:
        """Save the configuration, and the source of a user's model that it then names."""
        source, model = self.session.architecture.source, self.config.model
        if source is not None:
            self.folder.keep_model(source.files)
            model = f"{KEPT}/{source.main}:{model.rpartition(':')[2]}"
        saved = replace(self.config, model=model, allow_changed_model=False, elastic=False)
        self.folder.write_config(to_toml(saved, folder=False))

    def _open(self, communicator: Communicator) -> None:
        """Rank 0 claims the folder after all checks, and reads a checkpoint; all ranks receive it."""
        found: Found | None = None
        values: dict[str, Array] | None = None
        communicator.activity.enter("opening the run")
        for note in self.session.notes:
            self.report.note(note)
        with together(communicator):
            if communicator.rank == 0:
                found, values = self._open_folder()
        opened = (self.folder.path, found, values)
        path, found, values = communicator.broadcast(opened if communicator.rank == 0 else None)
        if communicator.rank != 0:
            self.folder = RunFolder(path, self.config.keep_best)
        if found is None:
            self.state = first_state(self.session, self.session.take_step.layouts, self.config.seed, values)
            return
        self.resumed, self.state = found[0], found[1].state.copy()  # what MPI received is not aligned
        if self.resumed == self.folder.checkpoint_of(self.state.step):
            self.saved_step = self.state.step

    def _open_folder(self) -> tuple[Found | None, dict[str, Array] | None]:
        """On rank 0: claim the folder; returns the checkpoint to resume from, or the values of --init-from."""
        config, session = self.config, self.session
        self.folder.close()  # it was opened before, but some ranks died before the run began
        self.folder = RunFolder(Path(config.run_dir), config.keep_best)
        if config.run_dir and self.folder.path.exists():
            self.folder.claim()  # before reading: another run may be writing there
        found = find_checkpoint(config, self.folder, self.report.note)
        if found is not None:
            path, checkpoint = found
            checkpoint = replace(checkpoint, origin=checkpoint.origin.completed(session.network))
            notes = check_resumable(path, checkpoint, config, session.origin, session.architecture.source)
            checkpoint = checkpoint.restricted(session.take_step.layouts, path)
            found = path, checkpoint
            for note in [*checkpoint.notes, *notes]:
                self.report.note(note)
        values = None
        if found is None and config.init_from:
            values = read_initial_values(config.init_from, session.network, self.report.note)
        if not config.run_dir:
            self.folder = RunFolder.new(config.data, config.model, config.keep_best)
        self.folder.claim()
        self._write_config()
        self.folder.remember_all()
        return found, values

    def requests(self, interruption: Interruption) -> Requests:
        """What this rank requests of all ranks with the next step."""
        writer = self.writer
        if writer is not None and writer.saved_step > self._reported_step:
            self._reported_step = writer.saved_step
            self.report.emit(CheckpointSaved(self._reported_step))
        return Requests(
            end=interruption.signal_name is not None,
            save_failed=writer is not None and writer.failed,
            checkpoint=writer is not None and writer.due(self.state.step + 1),
            finish=interruption.finish,
        )

    def save(self) -> None:
        """On all ranks: begin to write a checkpoint. TrainingError if the states differ or are not finite."""
        layouts, communicator = self.session.take_step.layouts, self.session.communicator
        with communicator.recorder.span("checkpoint", "checkpoint"):
            check_replicas(self.state, layouts, communicator)
            check_finite(self.state, layouts, communicator)
            self.saved_step = self.state.step
            if self.writer is not None:
                communicator.activity.enter("writing a checkpoint")  # the one before, if it is not finished yet
                self.writer.submit(self.state, communicator.recorder)
        self.report.emit(CheckpointStarted(self.saved_step))

    def wait_until_saved(self) -> None:
        """On all ranks: wait for the last checkpoint; CheckpointError if it cannot be written."""
        self.session.communicator.activity.enter("writing a checkpoint")
        with together(self.session.communicator):
            if self.writer is not None:
                self.writer.wait()

    def finish_timeline(self) -> None:
        """On all ranks, at the end of the steps: write what is recorded of a window that is not complete."""
        if self.timeline.recorder.recording:
            self.timeline.reach(self.state.step)
            self.write_timeline()
        elif self.config.timeline and self.timeline.last < 0:
            made = self.state.step + WARM_UP + 1 - self.timeline.first if self.timeline.first >= 0 else 0
            self.report.note(f"no timeline: recording begins after {WARM_UP} steps, and this process made {made}")

    def write_timeline(self) -> None:
        """On all ranks: end the recording and write its file. An error is reported, it does not end the run."""
        content, path = self.timeline.collect(), self.folder.path / FILE
        if self.report.rank == 0:
            try:
                write_durably(path, content)
            except OSError as error:
                self.report.note(f"{shown(path)}: cannot be written: {error.strerror}; the run continues")
            else:
                steps = f"steps {self.timeline.first} to {self.timeline.last}"
                self.report.note(f"timeline of {steps}: {path}, open it in https://ui.perfetto.dev")

    def close(self) -> None:
        """Finish writing the last checkpoint, end workers and threads, release the folder."""
        if self.writer is not None:
            self.writer.close(self.report.note)
        self._until_ranks_change.close()
        self.folder.close()
