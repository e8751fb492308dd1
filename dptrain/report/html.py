"""report.html in the run folder: the page of the run, written at its end."""

from __future__ import annotations

from pathlib import Path

from dptrain.system.failures import failure
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown
from dptrain.training.events import Event, RunFinished


class HtmlPage:
    """Writes the page of a run with --report. The run is complete and saved, so a failure is only reported."""

    def handle(self, event: Event) -> None:
        """Write the page at the end of a run."""
        if isinstance(event, RunFinished) and event.predictions is not None:
            folder = Path(event.run_dir)
            try:
                from dptrain.report.page.write import write_report

                write_report(folder, predictions=event.predictions)
            except Exception as error:
                text = failure(error).text.partition("\n")[0]
                write_to_stderr(f"dptrain: the report is not written: {text}; later: dptrain report {shown(folder)}")

    def close(self) -> None:
        """The file is closed after it is written."""
