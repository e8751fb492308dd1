"""What a program imports from dptrain: everything here can be imported as `from dptrain import ...`.

A program calls `pack`, then `train`, then `load`. The rest is what these return or take.

Everything computes with one BLAS thread, and gives the earlier number of threads back at the end. No function handles
signals unless it is asked to. Errors are subclasses of DptrainError.
"""

from dptrain.api.callbacks import Callback, Training
from dptrain.api.model import Model, load
from dptrain.api.packing import DataSet, pack
from dptrain.api.runs import Run, compare, train
from dptrain.errors import DptrainError

__all__ = ["Callback", "DataSet", "DptrainError", "Model", "Run", "Training", "compare", "load", "pack", "train"]
