"""`dptrain doctor`: whether this machine and its software can train, and what to do where they cannot.

It has a command line of its own, because it must also work where MPI or NumPy do not. So it connects the ranks itself,
in a process that may crash.
"""

from __future__ import annotations

import argparse
import json
import socket
import time
from collections.abc import Sequence
from itertools import groupby

from dptrain.commands import COMMANDS
from dptrain.doctor.examination import (
    Report,
    alone,
    examine_process,
    examine_ranks,
    not_connected,
    own_rank,
    started_by_launcher,
)
from dptrain.doctor.finding import FAILURE, LONGEST, OK, WARNING, Finding
from dptrain.doctor.isolated import TIMEOUT
from dptrain.errors import FAILED
from dptrain.system.arguments import Parser, whole
from dptrain.system.blas import request_one_thread
from dptrain.system.signals import EndedBySignal, ended_by_exception
from dptrain.system.streams import finish_output, write_to_stderr
from dptrain.system.text import shown

MORE = "to check ranks too: mpirun -n 4 dptrain doctor, or dptrain launch -n 4 -- doctor"
TURN = 2.0  # seconds


EXAMPLES = """
examples:
  dptrain doctor                this machine
  mpirun -n 4 dptrain doctor    all ranks, and whether their results agree
"""


def make_parser() -> Parser:
    """The parser of the command line."""
    purpose = COMMANDS["doctor"]
    parser = Parser(
        prog="dptrain doctor",
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    help = f"seconds to wait for a library, and for the other ranks (default: {TIMEOUT:g})"
    parser.add_argument("--timeout", type=whole(), default=int(TIMEOUT), metavar="N", help=help)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run all checks; returns the exit status."""
    parsed = make_parser().parse_args(arguments)
    request_one_thread()
    with ended_by_exception():
        findings = examine_process(parsed.timeout)
        if not started_by_launcher():
            report = alone(findings)
        else:
            try:
                report = examine_ranks(findings, parsed.timeout)
            except EndedBySignal as signal:
                if own_rank() != 0:  # mpirun ends the ranks after one of them has failed
                    return signal.status
                report = not_connected(findings, f"{signal} ended this rank while it waited for the others")
        if own_rank() == 0:
            print(json.dumps(report.to_json()) if parsed.json else "\n".join(lines(report)))
            finish_output()
        elif not report.connected:
            _report_failures(report)
        # mpirun ends all ranks when the first one fails, so only rank 0 may fail before it has printed the report.
        return FAILED if report.failed and (own_rank() == 0 or not report.connected) else 0


def _report_failures(report: Report) -> None:
    """Report in one line what has failed on a rank other than 0, and the first remedy.

    Rank 0 gets the time to print before: some launchers end all ranks when it has failed, often of the same failure.
    """
    time.sleep(TURN)
    failed = [finding for finding, _ in report.findings if finding.result == FAILURE]
    text = "; ".join(f"{one.check}: {one.found}" for one in failed)
    where = f"rank {own_rank()} on {socket.gethostname()}"
    write_to_stderr(f"dptrain: {where} failed: {shown(text, LONGEST)} -> {failed[0].remedy}")


def lines(report: Report) -> list[str]:
    """The report for people: a line for each finding, and a second one with the remedy."""
    width = max(len(finding.check) for finding, _ in report.findings)
    text = []
    for finding, ranks in report.findings:
        where = "" if len(ranks) == len(report.hosts) else f"{ranks_and_hosts(ranks, report.hosts)}: "
        text.append(f"{finding.result:<8} {finding.check:<{width}}  {shown(where + finding.found)}")
        if finding.remedy:
            text.append(f"{'':<8} {'':<{width}}  -> {shown(finding.remedy)}")
    found = [finding for finding, _ in report.findings]
    return [*text, "", _summary(found), *([MORE] if len(report.hosts) == 1 and not report.failed else [])]


def _summary(findings: Sequence[Finding]) -> str:
    """The number of checks by their result; of a check with several, the worst counts."""
    worst: dict[str, str] = {}
    for finding in findings:
        worst[finding.check] = max(finding.result, worst.get(finding.check, OK), key=(OK, WARNING, FAILURE).index)
    counts = {result: list(worst.values()).count(result) for result in (FAILURE, WARNING, OK)}
    words = [f"{count} {result}{'s' * (count != 1 and result != OK)}" for result, count in counts.items() if count]
    return f"{len(worst)} checks: {', '.join(words)}"


def ranks_and_hosts(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Such as "ranks 0-2, 5 on node1, node2"."""
    blocks = [[rank for _, rank in block] for _, block in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])]
    numbers = ", ".join(f"{block[0]}-{block[-1]}" if len(block) > 1 else f"{block[0]}" for block in blocks)
    names = list(dict.fromkeys(hosts[rank] for rank in ranks))
    where = ", ".join(names) if len(names) <= 3 else f"{len(names)} hosts, the first is {names[0]}"
    return f"rank{'s' * (len(ranks) > 1)} {numbers} on {where}"
