"""dptrain: data-parallel training of convolutional networks on CPUs. See README.md.

Everything in `dptrain.api` can be imported from here. It is loaded when it is first used, as the command line must
choose the number of BLAS threads before NumPy is imported.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dptrain.api import (
        Callback,
        DataSet,
        DptrainError,
        Evaluation,
        EvaluationFinished,
        Model,
        Predictions,
        Run,
        RunFinished,
        StepFinished,
        Training,
        compare,
        load,
        pack,
        train,
    )

__all__ = ["Callback", "DataSet", "DptrainError", "Evaluation", "EvaluationFinished", "Model", "Predictions", "Run"]
__all__ += ["RunFinished", "StepFinished", "Training", "compare", "load", "pack", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("dptrain.api"), name)
    raise AttributeError(f"module 'dptrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING"})
