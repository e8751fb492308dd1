"""A run on one rank: begun, gone on with from a checkpoint, or taken over from ranks that have died."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dptrain.checkpoint.folder import RunFolder, step_of
from dptrain.checkpoint.format import Checkpoint, read_checkpoint
from dptrain.checkpoint.state import TrainingState, initial_state
from dptrain.checkpoint.writer import CheckpointWriter
from dptrain.config.files import to_toml
from dptrain.config.train import TrainConfig
from dptrain.data.loading import NOTHING_LOADED
from dptrain.errors import CheckpointError, UsageError
from dptrain.health.interruption import Interruption
from dptrain.parallel.communicator import Communicator, known_to_all, together
from dptrain.parallel.watch import Watch
from dptrain.system.text import shown
from dptrain.training.architecture import Architecture
from dptrain.training.finite import check_finite
from dptrain.training.replicas import check_replicas
from dptrain.training.reporting import RunReport
from dptrain.training.setup import Session, agree_on, check_resumable, set_up, without_paths
from dptrain.training.step import Requests

CLAIM_PATIENCE = 10.0  # seconds: the kernel frees a dead rank's folder a little after the others learn of its death


class Run:
    """What a rank keeps of a run; after the death of other ranks, `begin` is called again with the survivors.

    Only rank 0 holds the folder and has a writer. `saved_step`, the same on all ranks, is the step of the newest
    checkpoint that is known to be in the folder or on its way there.
    """

    session: Session
    state: TrainingState

    def __init__(self, config: TrainConfig, report: RunReport) -> None:
        self.config, self.report = config, report
        self.folder = RunFolder(Path(config.run_dir))
        self.resumed: Path | None = None
        self.writer: CheckpointWriter | None = None
        self.saved_step = -1
        self.began = False
        self._loaded = NOTHING_LOADED
        self._architecture: Architecture | None = None  # kept: the model file may change while the run lives
        self._lost: list[int] = []  # ranks that have died since the last step, and when that was noticed
        self._noticed = 0.0
        self._until_ranks_change = ExitStack()

    def begin(self, communicator: Communicator, interruption: Interruption) -> None:
        """Get ready for the next step, together with all ranks of the communicator; from now on signals wait for it.

        DptrainError on all ranks when that cannot be. After a RankLostError it is called again with `survivors`.
        """
        self._until_ranks_change.close()
        self.report.rank = communicator.rank
        agree_on("configuration", without_paths(self.config), communicator)  # what follows depends on it
        check_elastic(self.config, communicator)
        watch = Watch(
            communicator, limit=self.config.stall_limit, abort=self.config.stall_abort, end=communicator.end_job
        )
        self._until_ranks_change.callback(watch.close)
        communicator.whereabouts.enter("loading data")
        self.session = set_up(self.config, communicator, self._loaded, self._architecture)
        self._architecture = self.session.architecture
        self._until_ranks_change.callback(self.session.pool.close)
        self._loaded = self.session.shards
        if not self._take_over(communicator):
            self._open(communicator)
        if communicator.rank == 0 and self.writer is None:
            self.writer = CheckpointWriter(
                self.folder, self.session.origin, self.session.take_step.layouts, self.config
            )
        if not self.began:
            interruption.begin_deferring()
            self.report.started(self.session, self.state, self.folder, self.resumed)
        self.began = True
        if self._lost:
            seconds = time.perf_counter() - self._noticed
            self.report.ranks_lost(self.session, self.state, self.folder, self._lost, seconds)
            self._lost = []

    def survivors(self, communicator: Communicator) -> Communicator:
        """After a RankLostError, on all ranks that live: their communicator."""
        if not self._lost:
            self._noticed = time.perf_counter()
        fewer = communicator.survivors()
        self._lost += sorted(set(communicator.world_ranks) - set(fewer.world_ranks))
        return fewer

    def _take_over(self, communicator: Communicator) -> bool:
        """Go on from the state of those ranks that have begun; False when none has, since the run has yet to begin.

        A step is made on all ranks or on none (`Communicator.confirm`), so their states are the same to the bit. Others
        may have lost the run on the way to its beginning, and receive it here.
        """
        begun = communicator.allgather(self.began)
        if not any(begun):
            return False
        root = begun.index(True)
        own = (self.state, self.folder.path, self.resumed) if communicator.rank == root else None
        state, path, self.resumed = communicator.broadcast(own, root)
        self.state = state.copy()  # what MPI received is not aligned
        self.saved_step = -1  # ranks may have learned of the death on either side of a `save`
        self.state.progress.test_accuracy = None  # whoever knew it may have died before it was saved
        if not self.began:
            self.folder.close()  # it was opened, but not all ranks lived to see it
            self.folder = RunFolder(path)
        with together(communicator):
            if communicator.rank == 0 and not self.folder.held:
                self.folder.claim(patience=CLAIM_PATIENCE)
                self.folder.remember_all()
                self._settle_on_this_host()
        return True

    def _settle_on_this_host(self) -> None:
        """On a new rank 0, whose host may not share the run folder's disk: complete the folder, say where it is."""
        if not self.folder.has_config:
            self._write_config()
            self.report.note(
                f"the run continues in {shown(self.folder.path.absolute())} on {socket.gethostname()}, a new folder: "
                "the earlier checkpoints are on the host that was lost"
            )

    def _write_config(self) -> None:
        """Save the configuration, and the source of a user's model that it then names."""
        source, model = self.session.architecture.source, self.config.model
        if source is not None:
            self.folder.keep_model(source.files)
            model = source.kept_name(model)
        saved = replace(self.config, model=model, allow_changed_model=False, elastic=False)
        self.folder.write_config(to_toml(saved, folder=False))

    def _open(self, communicator: Communicator) -> None:
        """Rank 0 claims the folder once nothing speaks against the run, and reads; all ranks receive."""
        found: tuple[Path, Checkpoint] | None = None
        notes: list[str] = []
        communicator.whereabouts.enter("opening the run")
        with together(communicator):
            if communicator.rank == 0:
                found, notes = self._open_folder()
        path, found = communicator.broadcast((self.folder.path, found) if communicator.rank == 0 else None)
        for note in self.session.notes + notes:
            self.report.note(note)
        if communicator.rank != 0:
            self.folder = RunFolder(path)
        if found is None:
            self.state = initial_state(self.session.network, self.session.take_step.layouts, self.config.seed)
            return
        self.resumed, self.state = found[0], found[1].state.copy()  # what MPI received is not aligned
        if self.resumed == self.folder.checkpoint_of(self.state.step):
            self.saved_step = self.state.step

    def _open_folder(self) -> tuple[tuple[Path, Checkpoint] | None, list[str]]:
        """On rank 0: claim the folder; the checkpoint to go on from with its path, and notes on what has changed."""
        config, notes, source = self.config, [], self.session.architecture.source
        self.folder.close()  # it was opened before, but no rank lived to begin
        self.folder = RunFolder(Path(config.run_dir))
        if config.run_dir and self.folder.path.exists():
            self.folder.claim()  # before reading: another run may be writing there
        found = find_checkpoint(config, self.folder, self.report)
        if found is not None:
            path, checkpoint = found
            notes = check_resumable(path, checkpoint, config, self.session.origin, source)
            checkpoint = checkpoint.restricted(self.session.take_step.layouts, path)
            found, notes = (path, checkpoint), [*checkpoint.notes, *notes]
        if not config.run_dir:
            self.folder = RunFolder.new(config.data, config.model)
        self.folder.claim()
        self._write_config()
        self.folder.remember_all()
        return found, notes

    def requests(self, interruption: Interruption) -> Requests:
        """What this rank has to tell the others with the next step."""
        writer = self.writer
        return Requests(
            end=interruption.signal_name is not None,
            save_failed=writer is not None and writer.failed,
            checkpoint=writer is not None and writer.due(self.state.step + 1),
        )

    def save(self) -> None:
        """Begin to write a checkpoint of the state; called by all ranks.

        TrainingError when it is not worth keeping: the ranks do not agree on it, or it is not finite.
        """
        layouts, communicator = self.session.take_step.layouts, self.session.communicator
        check_replicas(self.state, layouts, communicator)
        check_finite(self.state, layouts, communicator)
        self.saved_step = self.state.step
        if self.writer is not None:
            communicator.whereabouts.enter("writing a checkpoint")  # the one before, if it is still on its way
            self.writer.submit(self.state)

    def wait_until_saved(self) -> None:
        """On all ranks: until the last checkpoint is on disk; CheckpointError when it cannot be written."""
        self.session.communicator.whereabouts.enter("writing a checkpoint")
        with together(self.session.communicator):
            if self.writer is not None:
                self.writer.wait()

    def close(self) -> None:
        """End helpers, threads and the hold of the folder; a checkpoint on its way is written first."""
        if self.writer is not None:
            self.writer.close(self.report.note)
        self._until_ranks_change.close()
        self.folder.close()


def check_elastic(config: TrainConfig, communicator: Communicator) -> None:
    """UsageError when --elastic asks for what this MPI cannot do."""
    if config.elastic and not communicator.survives:
        error = UsageError(
            f"--elastic needs ULFM, which {communicator.implementation} does not have here: start "
            "with mpirun --with-ft ulfm of Open MPI 5 or later, or with dptrain launch --elastic. Elsewhere, "
            "dptrain launch --max-restarts K restarts a job from its last checkpoint"
        )
        raise known_to_all(communicator, error)


def find_checkpoint(config: TrainConfig, folder: RunFolder, report: RunReport) -> tuple[Path, Checkpoint] | None:
    """The checkpoint that --resume asks for, with its path; None to begin anew."""
    if config.resume == "auto":
        return folder.newest(report.note, set_aside=True) if config.run_dir else None
    if config.resume == "never":
        if config.run_dir and (there := folder.candidates()):
            raise UsageError(
                f"--resume never, but {folder.path} already holds a run ({there[-1].name}), and nothing is "
                "overwritten: choose another --run-dir, or resume with --resume auto"
            )
        return None
    path, checkpoint = _named_checkpoint(Path(config.resume), report)
    there = folder.numbered() if config.run_dir else []
    later = [other for other in there if step_of(other) > checkpoint.state.step]
    if later:
        raise UsageError(
            f"--resume {path} is at step {checkpoint.state.step}, but {folder.path} holds later checkpoints "
            f"({later[-1].name}), and nothing is written over: go on from those with --resume auto, or choose another "
            "--run-dir"
        )
    return path, checkpoint


def _named_checkpoint(path: Path, report: RunReport) -> tuple[Path, Checkpoint]:
    """The checkpoint of --resume PATH, or the newest of a run folder."""
    if path.is_file():
        return path, read_checkpoint(path)
    found = RunFolder(path).newest(report.note) if path.is_dir() else None
    if found is None:
        raise CheckpointError(
            f"--resume {path}: no checkpoint there; expected auto, never, a checkpoint's path or a run folder"
        )
    return found
