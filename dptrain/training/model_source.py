"""A user's model file: loading it with the modules beside it, keeping what was loaded, and noticing changes.

The file is loaded as Python runs a script, in every way of starting: the modules in its own folder come before
installed ones. But not before the standard library, dptrain and what dptrain needs: a `random.py` beside the model
would otherwise break the program that loads it. No .pyc is read or written: the bytes that are kept are executed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any

from dptrain.checkpoint.folder import KEPT
from dptrain.errors import ModelError, UsageError
from dptrain.system.text import shown
from dptrain.system.tracebacks import last_line, place, user_traceback

NEEDED = {"dptrain", "numpy", "h5py", "mpi4py", "threadpoolctl", "rich", "pooch", "tomli_w"}
NOT_FROM_THE_FOLDER = NEEDED | sys.stdlib_module_names
LARGEST = 64 << 20  # bytes of all files together


class ModelSource:
    """The files of a model as they were loaded, `files`: name relative to the model file's folder, to content.

    `files` grows when the model imports more while it computes. `main` is the model file's own name.
    """

    def __init__(self, path: Path) -> None:
        self.main = path.name
        self.path = path.resolve()
        self.folder = self.path.parent  # as Python does for a script that is a symbolic link
        self.files: dict[str, bytes] = {}
        self.modules: list[str] = []
        self.packages: set[str] = set()  # top-level names that were found in the folder

    def record(self, path: Path, module: str) -> bytes:
        """Read a file once; ModelError when it cannot be kept."""
        name = self.main if path == self.path else path.relative_to(self.folder).as_posix()
        if module not in self.modules:
            self.modules.append(module)
        if name not in self.files:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ModelError(f"model file {shown(name)}: its name is not UTF-8; rename it") from None
            if path.stat().st_size + sum(map(len, self.files.values())) > LARGEST:
                raise ModelError(
                    f"model file {shown(name)}: all files of a model are kept in the run folder, at most "
                    f"{LARGEST >> 20} MiB; install what is larger as a package"
                )
            self.files[name] = path.read_bytes()
        return self.files[name]

    def hashes(self) -> dict[str, str]:
        """Name to SHA-256, sorted by name."""
        return {name: hashlib.sha256(self.files[name]).hexdigest() for name in sorted(self.files)}

    def loaded(self) -> list[ModuleType]:
        """The modules that were loaded from the files."""
        return [sys.modules[name] for name in self.modules if name in sys.modules]

    def kept_name(self, model: str) -> str:
        """What a configuration in the run folder calls the model FILE.py:FUNCTION: the file is kept beside it."""
        return f"{KEPT}/{self.main}:{model.rpartition(':')[2]}"

    def changed_files(self, before: Mapping[str, str], main: str) -> list[str]:
        """Names of files that are not what they were, by earlier `hashes` of a model whose file was called `main`.

        A file that is not loaded yet is looked for: it may be imported later. The model file itself may have another
        name.
        """
        before = {self.main if name == main else name: digest for name, digest in before.items()}
        now = self.hashes()
        return [
            name
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != (now.get(name) or self._hash_of_a_neighbour(name))
        ]

    def _hash_of_a_neighbour(self, name: str) -> str | None:
        path = self.folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return None
        try:
            if not path.is_file() or path.stat().st_size > LARGEST:
                return None
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, ValueError):
            return None

    def shadowed(self) -> list[str]:
        """A line for each module that the files import from elsewhere although one beside them has its name."""
        imported = {name for content in self.files.values() for name in _imported(content)}
        there = sorted(imported & (NOT_FROM_THE_FOLDER - {"dptrain"}))
        return [
            f"`import {name}` in {self.main} is not the {name} beside it, but the one of "
            f"{'Python' if name in sys.stdlib_module_names else 'dptrain'}; rename it if it was meant"
            for name in there
            if (self.folder / f"{name}.py").is_file() or (self.folder / name / "__init__.py").is_file()
        ]


def _imported(content: bytes) -> set[str]:
    """The top-level names that a module's source imports."""
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in found}


class _SourceLoader(SourceFileLoader):
    """Compiles the bytes that are recorded."""

    def __init__(self, name: str, path: str, *, source: ModelSource) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType | None:
        code: CodeType = self.source_to_code(self.source.record(Path(self.path), fullname), self.path)
        return code


class _ExtensionLoader(ExtensionFileLoader):
    """Loads a compiled module, and records its file."""

    def __init__(self, name: str, path: str, *, source: ModelSource) -> None:
        super().__init__(name, path)
        self.source = source

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.source.record(Path(self.path), spec.name)
        return super().create_module(spec)


class _Finder:
    """Finds modules in the model file's folder, and in folders below it that the user's code adds to sys.path.

    There are two: the first of sys.meta_path finds modules and packages, the last one folders without __init__.py,
    which Python takes for packages (namespace packages) only where it finds nothing else.
    """

    def __init__(self, source: ModelSource, *, namespaces: bool) -> None:
        self.source, self.namespaces = source, namespaces
        self.before = set(map(str, sys.path))
        self._finders: dict[str, FileFinder] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        if top in NOT_FROM_THE_FOLDER:
            return None
        if path is None:
            folders: Iterable[str] = self._folders()
        elif top in self.source.packages:
            folders = path
        else:
            return None
        for folder in folders:
            spec = self._finder(folder).find_spec(fullname)
            if spec is not None and (spec.loader is None) == self.namespaces:
                self.source.packages.add(top)
                return spec
        return None

    def _folders(self) -> list[str]:
        """Where top-level modules are looked for, in the order of sys.path."""
        added = [Path(entry).resolve() for entry in sys.path if isinstance(entry, str) and entry not in self.before]
        below = [str(entry) for entry in added if entry.is_relative_to(self.source.folder)]
        return [*below, str(self.source.folder)]

    def _finder(self, folder: str) -> FileFinder:
        if folder not in self._finders:
            loaders = [(_ExtensionLoader, EXTENSION_SUFFIXES), (_SourceLoader, SOURCE_SUFFIXES)]
            details: list[Any] = [(functools.partial(loader, source=self.source), ends) for loader, ends in loaders]
            self._finders[folder] = FileFinder(folder, *details)
        return self._finders[folder]


_finders: list[_Finder] = []  # of the model that was loaded last


def load_model_file(model: str) -> tuple[ModuleType, ModelSource]:
    """Execute the file of FILE.py:FUNCTION as a module of its own.

    UsageError where there is no such file, ModelError with the user's traceback when it fails. Modules that an earlier
    model has loaded from its folder are forgotten, so that two models may have neighbours of one name.
    """
    written = model.rsplit(":", 1)[0]
    try:
        file = Path(written).expanduser()
        if not file.is_file():
            raise UsageError(f"--model {model}: there is no file {file}")
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--model {model}: {written} cannot be read: {reason}") from None
    if file.suffix not in SOURCE_SUFFIXES:
        raise UsageError(f"--model {model}: {file} is not a Python file")
    source = ModelSource(file)
    _forget()
    importlib.invalidate_caches()
    _finders[:] = [_Finder(source, namespaces=False), _Finder(source, namespaces=True)]
    sys.meta_path.insert(0, _finders[0])
    sys.meta_path.append(_finders[1])
    # A name of its own, registered as dataclasses and pickles in the file need it.
    name = f"dptrain_model_{file.stem}"
    loader = _SourceLoader(name, str(source.path), source=source)
    spec = importlib.util.spec_from_file_location(name, source.path, loader=loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except ModelError:
        raise
    except OSError as error:
        if error.filename != str(source.path):
            raise _failure(model, source, error) from error
        raise UsageError(f"--model {model}: {file} cannot be read: {error.strerror}") from error
    except (Exception, SystemExit) as error:
        raise _failure(model, source, error) from error
    return module, source


def _forget() -> None:
    for finder in _finders:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
    packages = {name for finder in _finders for name in (*finder.source.packages, *finder.source.modules)}
    for name in [name for name in sys.modules if name in packages or name.partition(".")[0] in packages]:
        del sys.modules[name]
    _finders.clear()


def _failure(model: str, source: ModelSource, error: BaseException) -> ModelError:
    return ModelError(f"--model {model}: {failed(error, source)}", user_traceback(error))


def failed(error: BaseException, source: ModelSource) -> str:
    """What went wrong in a user's code, in a line, with advice where there is any."""
    if isinstance(error, SystemExit):
        return f"ended the program with status {error.code}{place(error)}"
    advice = ""
    if isinstance(error, ImportError) and "relative import" in str(error):
        advice = f"; {source.main} is loaded as a script is, not as part of a package: write `import NAME` for NAME.py"
    elif isinstance(error, ImportError | AttributeError):
        advice = "".join(f"; {line}" for line in source.shadowed())
    return last_line(error) + advice


def beside(toml: Path, model: str) -> str:
    """The model of a TOML file: a relative FILE.py is looked for beside that file, then in the working directory."""
    file, colon, function = model.rpartition(":")
    there = toml.parent / file
    return f"{there}:{function}" if colon and not Path(file).is_absolute() and there.is_file() else model
