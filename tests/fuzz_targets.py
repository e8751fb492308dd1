"""The readers of formats that others write, as functions of bytes. Each returns, or raises DptrainError.

The first byte of an input selects a part of a valid set of files, which the other bytes replace. So an input reaches
the reader behind checksums and compression.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import numpy as np
from data_sets import idx_bytes, image_data
from picture_files import encoded

from data_prep.__main__ import make_parser
from data_prep.images import ImageData, checked
from data_prep.pack import pack
from data_prep.sources import cifar10
from dptrain.data.manifest import MANIFEST, read_manifest
from dptrain.errors import DptrainError
from dptrain.system.text import LONGEST


class Target(ABC):
    """A reader, its valid inputs and its words; its files are in `folder`."""

    words: tuple[bytes, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.options: dict[tuple[str, tuple[str, ...]], argparse.Namespace] = {}

    @cached_property
    @abstractmethod
    def seeds(self) -> list[bytes]:
        """Valid inputs."""

    @abstractmethod
    def read(self, choice: int, content: bytes) -> ImageData | None:
        """Read an input of this content."""

    def from_source(self, name: str, path: Path, *words: str) -> ImageData:
        """What a source reads from a path. The words are parsed once: that takes longer than to read."""
        if (name, words) not in self.options:
            flag = "--archive" if name == "cifar10" else "--from"
            self.options[name, words] = make_parser().parse_args(
                [name, str(self.folder), flag, str(path), "--shards", "1", *words]
            )
        options = self.options[name, words]
        data: ImageData = options.source.read(options)
        return data

    def accepts(self, data: bytes) -> bool:
        """Whether an input is read; AssertionError if it is refused by an error that cannot be shown in one line."""
        choice, content = (data[0], data[1:]) if data else (0, b"")
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                read = self.read(choice, content)
                if read is not None:
                    checked(read)
        except DptrainError as error:
            refused = str(error)
        else:
            return True
        assert refused.isprintable(), refused
        assert len(refused) < LONGEST
        return False


class Idx(Target):
    """A file of images or of labels; compressed or not."""

    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    arrays = tuple(np.arange(count, dtype=np.uint8) % 3 for count in (18, 3, 12, 2))
    contents = tuple(
        idx_bytes(array.reshape(-1, 2, 3) if "3" in name else array) for name, array in zip(names, arrays, strict=True)
    )

    @cached_property
    def seeds(self) -> list[bytes]:
        plain = [bytes([number]) + content for number, content in enumerate(self.contents)]
        return plain + [bytes([4 + number]) + gzip.compress(content) for number, content in enumerate(self.contents)]

    def read(self, choice: int, content: bytes) -> ImageData | None:
        for path in self.folder.glob("*ubyte*"):
            path.unlink()
        for number, name in enumerate(self.names):
            zipped = ".gz" * (choice >> 2 & 1 and number == choice & 3)
            (self.folder / f"{name}{zipped}").write_bytes(content if number == choice & 3 else self.contents[number])
        return self.from_source("idx", self.folder)


class Cifar(Target):
    """A whole archive, packed or not yet, or one member of an archive."""

    words = (
        b"cnumpy\ndtype\n",
        b"c_codecs\nencode\n",
        b"latin1",
        b"ustar",
        b"data",
        b"labels",
        b"label_names",
        b"\x85R",
    )
    batches = ("data_batch_1", "test_batch")
    meta = "batches.meta"
    contents = replace(
        cifar10.CONTENTS,
        binary=tuple(f"bin/{name}" for name in ("batches.meta.txt", *batches)),
        pickled=tuple(f"py/{name}" for name in (meta, *batches)),
        samples=(1, 1),
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        names = [name.encode() for name in self.contents.classes]
        batch = {b"labels": [7], b"data": np.arange(3072, dtype=np.uint8)[None], b"filenames": [b"a.png"]}
        records = b"\7" + bytes(range(256)) * 12
        self.binary = dict(zip(self.contents.binary, (b"\n".join(names), records, records), strict=True))
        pickles = (pickle.dumps(one, 2) for one in ({b"label_names": names}, batch, batch))
        self.pickled = dict(zip(self.contents.pickled, pickles, strict=True))

    @cached_property
    def seeds(self) -> list[bytes]:
        binary, pickled = tar_bytes(self.binary), tar_bytes(self.pickled)
        members = [bytes([3 + number]) + content for number, content in enumerate(self.pickled.values())]
        protocols = [
            bytes([4]) + pickle.dumps(pickle.loads(self.pickled["py/data_batch_1"]), number) for number in (0, 4)
        ]
        whole = [
            b"\0" + binary,
            b"\0" + pickled,
            b"\1" + gzip.compress(binary),
            b"\2" + self.binary["bin/data_batch_1"],
        ]
        return whole + members + protocols

    def read(self, choice: int, content: bytes) -> ImageData | None:
        choice %= 6
        members = self.binary if choice == 2 else self.pickled
        path = self.folder / "archive.tar.gz"
        if choice > 1:
            name = [*members][choice - 3 if choice > 2 else 1]
            content = tar_bytes({**members, name: content})
        path.write_bytes(content if choice == 1 else gzip.compress(content, 0))
        with patch.object(cifar10, "CONTENTS", self.contents):
            return self.from_source("cifar10", path)


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar archive of regular files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


class Npz(Target):
    """A whole archive, or one array of an archive."""

    words = (
        b"\x93NUMPY\1\0",
        b"'descr': '|u1'",
        b"'fortran_order': False",
        b"'shape': (",
        b"PK\1\2",
        b"PK\3\4",
        b"PK\5\6",
    )
    arrays: tuple[np.ndarray, ...] = (
        np.zeros((4, 5, 6, 1), np.uint8),
        np.arange(4),
        np.zeros((2, 5, 6, 1), np.uint8),
        np.arange(2),
    )
    names = ("x_train", "y_train", "x_test", "y_test")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.contents = {f"{name}.npy": npy_bytes(array) for name, array in zip(self.names, self.arrays, strict=True)}

    @cached_property
    def seeds(self) -> list[bytes]:
        deflated = zip_bytes(self.contents, zipfile.ZIP_DEFLATED)
        arrays = [bytes([1 + number]) + content for number, content in enumerate(self.contents.values())]
        return [b"\0" + zip_bytes(self.contents), b"\0" + deflated, *arrays]

    def read(self, choice: int, content: bytes) -> ImageData | None:
        if choice := choice % 5:
            content = zip_bytes({**self.contents, [*self.contents][choice - 1]: content})
        (self.folder / "a.npz").write_bytes(content)
        return self.from_source("npz", self.folder / "a.npz")


def npy_bytes(array: np.ndarray) -> bytes:
    """The content of a .npy file."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def zip_bytes(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return archive.getvalue()


class Csv(Target):
    """A table of two pictures."""

    words = (b"path,label,split", b",train\n", b",test\n", b",validation\n", b"a.png", b"b.png", b'"', b"\xef\xbb\xbf")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(encoded(np.zeros((2, 2, 3), np.uint8)))

    @cached_property
    def seeds(self) -> list[bytes]:
        return [
            b"\0path,label,split\na.png,cat,train\nb.png,cat,test\n",
            b'\0"a.png","cat"\r\n\r\n./b.png, cat \r\n',
            b"\1\xef\xbb\xbfa.png,0\nb.png,1\nmissing.png,1\n./a.png,1\n",
        ]

    def read(self, choice: int, content: bytes) -> ImageData | None:
        (self.folder / "a.csv").write_bytes(content)
        words = ("--size", "2", "2", "--processes", "1", *["--skip-broken"] * (choice & 1))
        return self.from_source("csv", self.folder / "a.csv", *words)


class ManifestJson(Target):
    """The text of a manifest, of each version; a manifest that is read is written as text that is read again."""

    words = (b"null", b"true", b"1e999", b"NaN", b"-1", b'"version"', b'"splits"', b'"offsets"', b'"\\ud800"', b"[[")

    @cached_property
    def manifest(self) -> bytes:
        """A valid manifest."""
        pack(self.folder / "set", image_data(train=4, test=2, classes=2), shards=1)
        return (self.folder / "set" / MANIFEST).read_bytes()

    @cached_property
    def seeds(self) -> list[bytes]:
        old = json.loads(self.manifest) | {"version": 1}
        for entries in old["splits"].values():
            del entries[0]["offsets"], entries[0]["contents_sha256"]
        return [b"\0" + self.manifest, b"\0" + json.dumps(old).encode()]

    def read(self, choice: int, content: bytes) -> ImageData | None:
        path = self.folder / MANIFEST
        path.write_bytes(content)
        manifest = read_manifest(self.folder)
        path.write_text(manifest.to_json())
        assert read_manifest(self.folder) == manifest
        assert len(manifest.sha256) == 64
        assert manifest.repack_command(self.folder, 2).isprintable()
        return None


TARGETS: dict[str, Callable[[Path], Target]] = {
    "idx": Idx,
    "cifar": Cifar,
    "npz": Npz,
    "csv": Csv,
    "manifest": ManifestJson,
}
