"""Reporters of a training run. A new one is a file here and a line in this list: a class without arguments."""

from dptrain.report.console import Console
from dptrain.report.jsonl import JsonLines

REPORTERS = (JsonLines, Console)
