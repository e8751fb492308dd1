"""The command line: connects the ranks and runs one command.

Nothing here imports NumPy before `request_one_thread`, and the `prepare` of a command, have run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Sequence

from dptrain.commands import ALIASES, PROGRAMS
from dptrain.commands.exit import end, leave, may_retry
from dptrain.commands.parser import build_parser
from dptrain.errors import UsageError
from dptrain.system import record
from dptrain.system.blas import request_one_thread
from dptrain.system.signals import ended_by_exception
from dptrain.system.start import start_program
from dptrain.system.streams import finish_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. An error is one line for people, not a traceback."""
    start_program()
    record.begin()
    status = _main(sys.argv[1:] if arguments is None else arguments)
    if record.launched():
        from dptrain.system.launched import launched_rank

        if launched_rank() == 0:
            record.report_end(status, retry=may_retry(status))
    return status


def _main(arguments: Sequence[str]) -> int:
    communicator = None
    try:
        name = next((word for word in arguments if not word.startswith("-")), "")
        parsed, wrong = argparse.Namespace(), None
        try:
            program = ALIASES.get(name, name)
            if program in PROGRAMS and arguments[0] == name:
                return int(importlib.import_module(PROGRAMS[program]).main(arguments[1:]))
            request_one_thread()
            parsed = build_parser(name).parse_args(arguments)
            if hasattr(parsed.command, "prepare"):
                parsed.command.prepare(parsed)
        except UsageError as error:
            wrong = error  # reported when the ranks are connected, by one of them
        except SystemExit:  # --help or --version
            finish_output()
            return 0
        from dptrain.parallel.communicator import Communicator, together
        from dptrain.parallel.mpi import connect

        communicator = Communicator()
        communicator, connection = connect()
        with together(communicator):
            if wrong is not None:
                raise wrong
        # MPI libraries use some signals themselves, and `train` handles them itself.
        by_exception = not communicator.uses_mpi and not hasattr(parsed.command, "HANDLES_SIGNALS")
        with ended_by_exception() if by_exception else contextlib.nullcontext():
            status: int = parsed.command.run(parsed, communicator, connection)
            finish_output()
        if communicator.rank == 0:
            record.report_end(status, retry=may_retry(status))
        return leave(communicator, status)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # a user's layer may call sys.exit() on one rank
        return end(error, communicator)
