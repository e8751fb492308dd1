"""The training path uses only functions that give the same bits on every CPU.

IEEE 754 defines addition, multiplication, division and the square root to the bit. NumPy's other functions of real
numbers depend on the instructions that a CPU has, and those of `math` and `**` on the C library.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dptrain"
TRAINING_PATH = [
    *(PACKAGE / "arrays").rglob("*.py"),
    *(PACKAGE / "data").rglob("*.py"),
    *(PACKAGE / "nn").rglob("*.py"),
    *(PACKAGE / "optim").rglob("*.py"),
    *(PACKAGE / "parallel" / "reduce").rglob("*.py"),
    *(PACKAGE / "training").rglob("*.py"),
]
EXACT = {
    *("add", "subtract", "multiply", "divide", "reciprocal", "sqrt", "square", "negative", "absolute", "abs", "sign"),
    *("maximum", "minimum", "rint", "floor", "copysign", "isfinite", "isnan", "matmul"),
    *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"),
    *("bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift", "logical_and", "logical_or"),
}
# Of NumPy's functions that are not ufuncs: these call LAPACK or functions that are not exact. einsum is allowed: unlike
# ufuncs it is compiled only once, for a CPU without fused multiply-adds (found in NumPy 2.0 to 2.4).
NOT_EXACT = {"linalg", "fft", "interp", "sinc", "logspace", "geomspace", "polyfit"}
EXACT_MATH = {
    *("sqrt", "isqrt", "fsum", "prod", "gcd", "lcm", "comb", "floor", "ceil", "frexp", "ldexp"),
    *("isfinite", "isnan", "isinf", "copysign", "inf", "nan", "pi", "e"),
}


def problems(code: str) -> list[str]:
    """What in `code` may give other bits on another machine, with its line."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            ufunc = isinstance(vars(np).get(name), np.ufunc)
            if (module == "math" and name not in EXACT_MATH) or (
                module == "np" and (name in NOT_EXACT or (ufunc and name not in EXACT))
            ):
                found.append(f"line {node.lineno}: {module}.{name}")
        elif isinstance(node, ast.ImportFrom) and node.module in ("math", "numpy"):
            found.append(f"line {node.lineno}: from {node.module} import hides where a name comes from")
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Pow):
            base, exponent = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
            squared = isinstance(exponent, ast.Constant) and exponent.value == 2
            if not squared and not isinstance(base, ast.Constant):
                found.append(f"line {node.lineno}: ** of a variable")
    return found


@pytest.mark.parametrize("path", TRAINING_PATH, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_training_path_uses_only_exact_functions(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "np.exp(x)",
        "np.tanh(x, out=x)",
        "np.power(x, 3)",
        "np.hypot(x, y)",
        "np.linalg.norm(x)",
        "math.cos(x)",
        "math.exp(1)",
        "x**3",
        "x **= y",
        "beta ** (step + 1)",
        "from math import cos",
    ],
)
def test_functions_that_are_not_exact_are_found(code: str) -> None:
    assert len(problems(code)) == 1
