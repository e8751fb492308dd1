"""MLflow: parameters, curves, pictures and report.html of the run in the store of MLFLOW_TRACKING_URI."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import time
from pathlib import Path
from typing import Any

import dptrain
from dptrain.report.figures import figures
from dptrain.system.durable import write_durably
from dptrain.system.files import parse_toml
from dptrain.training.events import Event, RanksLost, RunFacts, RunFinished, RunStarted

RUN_ID = "mlflow-run.txt"  # in the run folder: the run in MLflow, which a resumed run continues
EXPERIMENT = "dptrain"
LONGEST, LONGEST_NAME = 500, 250  # characters of a parameter and of a metric's name
# Of variables that a user has not set. A server that does not answer must not hold up the ranks: MLflow's own defaults
# wait for minutes.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def _allowed(name: str) -> str:
    """A name as MLflow accepts it: letters, digits and some signs, and a slash only between two parts."""
    name = re.sub(r"[^\w.\- :/]", "_", name)
    return (name if posixpath.normpath(name) == name else name.replace("/", "_"))[:LONGEST_NAME]


class MLflow:
    """Logs to one run of MLflow, named like the run folder."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run = ""

    def handle(self, event: Event) -> None:
        """Log the figures of an event."""
        if isinstance(event, RunStarted | RanksLost) and self._client is None:
            self._open(event.run)
        values = figures(event)
        if values and self._client is not None:
            from mlflow.entities import Metric

            now, step = int(1000 * time.time()), event.step  # type: ignore[union-attr] # events with figures have it
            self._client.log_batch(
                self._run, metrics=[Metric(_allowed(name), one, now, step) for name, one in values.items()]
            )
        if isinstance(event, RunFinished) and self._client is not None:
            self._client.set_tag(self._run, "params_sha256", event.params_sha256)
            try:
                self._keep_files(event)
            finally:  # the run has finished even if its files cannot be kept
                self._end("FINISHED")

    def _keep_files(self, event: RunFinished) -> None:
        """The page of the run, which an earlier reporter has written, and the pictures, as artifacts."""
        from dptrain.report.page.write import NAME
        from dptrain.report.pictures import pictures

        page = Path(event.run_dir) / NAME
        if event.predictions is not None and page.exists():
            self._client.log_artifact(self._run, str(page))
        for name, picture in pictures(event).items():
            self._client.log_image(self._run, picture, f"{name}.png")

    def _open(self, run: RunFacts) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports each table of a new database
        client, folder = MlflowClient(), Path(run.run_dir)
        kept = folder / RUN_ID
        if kept.exists():
            self._run = kept.read_text(encoding="utf-8").strip()
            client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._create(client, run)
            write_durably(kept, f"{self._run}\n".encode())
        self._client = client

    def _create(self, client: Any, run: RunFacts) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        folder = Path(run.run_dir)
        tags = {"dptrain.version": dptrain.__version__, "dptrain.run_dir": str(folder.absolute())}
        created: str = client.create_run(number, run_name=folder.absolute().name, tags=tags).info.run_id
        configuration = parse_toml((folder / "config.toml").read_text(encoding="utf-8"))
        client.log_batch(created, params=[Param(key, str(value)[:LONGEST]) for key, value in configuration.items()])
        return created

    def _end(self, status: str) -> None:
        client, self._client = self._client, None
        client.set_terminated(self._run, status)

    def close(self) -> None:
        """A run that has not finished is marked as KILLED: it can be resumed."""
        if self._client is not None:
            self._end("KILLED")
