"""What a program imports from dptrain: everything here can be imported as `from dptrain import ...`.

A program calls `pack`, then `train`, then `load`. `compare` writes a page about several runs.

Each function computes with one BLAS thread, and restores the earlier number at the end. No function handles signals
unless it is asked to. Errors are subclasses of DptrainError, in dptrain.errors. Layers are in dptrain.nn.
"""

from dptrain.api.callbacks import Callback, Training
from dptrain.api.model import Model, load
from dptrain.api.packing import DataSet, pack
from dptrain.api.runs import Run, compare, train
from dptrain.errors import DptrainError
from dptrain.training.evaluate import Evaluation
from dptrain.training.events import EvaluationFinished, RunFinished, StepFinished
from dptrain.training.predictions import Predictions

__all__ = ["Callback", "DataSet", "DptrainError", "Evaluation", "EvaluationFinished", "Model", "Predictions", "Run"]
__all__ += ["RunFinished", "StepFinished", "Training", "compare", "load", "pack", "train"]
