"""Imports point down: a module imports only from its own package and from the floors below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
FLOORS = [
    {"dptrain", "dptrain.errors"},
    {"dptrain.system"},
    {"dptrain.arrays"},
    {"dptrain.nn", "dptrain.optim", "dptrain.data"},
    {"dptrain.config", "dptrain.health"},
    {"dptrain.parallel"},
    {"dptrain.checkpoint"},
    {"dptrain.training"},
    {"dptrain.report", "dptrain.export", "dptrain.bench", "dptrain.doctor"},
    {"dptrain.commands", "dptrain.api"},
    {"dptrain.__main__"},
]
FLOOR_OF = {package: number for number, floor in enumerate(FLOORS) for package in floor}
# The two programs beside dptrain, and all that they may import from it.
BELOW = {
    "data_prep": {"dptrain", "dptrain.errors", "dptrain.system", "dptrain.arrays", "dptrain.data"},
    "launch": {"dptrain", "dptrain.errors", "dptrain.system", "dptrain.config"},
}


def package_of(module: str) -> str:
    """The package on a floor that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "dptrain" else 1])


def imports(path: Path) -> set[str]:
    """Packages of this project that a file imports, at its head or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole_package = node.module == "dptrain"
            found |= {f"dptrain.{name.name}" for name in node.names} if whole_package else {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    packages = {package_of(module) for module in found if module.split(".")[0] in ("dptrain", *BELOW)}
    return {"dptrain" if package == "dptrain.__version__" else package for package in packages}


def sources(folder: str) -> list[str]:
    return [
        str(path.relative_to(CHECKOUT))
        for path in sorted((CHECKOUT / folder).rglob("*.py"))
        if path.relative_to(CHECKOUT).parts[:2] not in (("dptrain", "data_prep"), ("dptrain", "launch"))
    ]


@pytest.mark.parametrize("source", sources("dptrain"))
def test_a_module_imports_only_from_lower_floors(source: str) -> None:
    package = package_of(source.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if source == "dptrain/__init__.py":  # it loads the API when a program uses it; others read only the version there
        package = "dptrain.__main__"
    for imported in imports(CHECKOUT / source) - {package}:
        if package_of(imported) in ("dptrain.data_prep", "dptrain.launch"):
            assert package in ("dptrain.commands", "dptrain.api", "dptrain.bench"), imported
        else:
            assert FLOOR_OF[imported] < FLOOR_OF[package], imported


@pytest.mark.parametrize("program", BELOW)
def test_the_programs_beside_dptrain_import_only_what_they_need(program: str) -> None:
    for source in sources(program):
        assert imports(CHECKOUT / source) <= BELOW[program] | {program}, source
