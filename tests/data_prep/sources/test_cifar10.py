"""data_prep.sources.cifar10: both archives are read, and every kind of wrong archive is refused."""

from __future__ import annotations

import gzip
import io
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_archives import FIRST_BIN, FIRST_PY, META_PY, read, refused
from data_sets import (
    BATCH_SAMPLES,
    PEAK_MEMORY,
    SMALL_CIFAR10,
    binary_members,
    cifar10_records,
    python_members,
    write_archive,
)

from data_prep.cifar import read_archive
from data_prep.pack import pack
from data_prep.sources.cifar10 import BATCHES, CONTENTS
from data_prep.verify import verify
from dptrain.data.manifest import Provenance
from dptrain.system.files import file_sha256


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "any-name.tar.gz", binary_members())


@pytest.mark.parametrize("members", [binary_members, python_members])
def test_pixels_and_labels_are_in_the_order_of_the_batches(
    members: Callable[[], dict[str, bytes]], tmp_path: Path
) -> None:
    shuffled = dict(sorted(members().items(), reverse=True))  # published archives have their members in any order
    data = read(write_archive(tmp_path / "a.tar.gz", {"x/readme.html": b"<html>", **shuffled}))
    pixels, labels = cifar10_records()
    for split, batches in ((data.train, slice(0, 5)), (data.test, slice(5, 6))):
        expected = np.concatenate(pixels[batches]).reshape(-1, 3, 32, 32)
        assert np.array_equal(split.images[:], expected)
        assert split.labels.dtype == np.int64
        assert np.array_equal(split.labels, np.concatenate(labels[batches]))
    assert data.classes == CONTENTS.classes
    # A record's bytes are the red plane, then green, then blue, each by rows.
    assert data.train.images[:][0, 1, 2, 3] == pixels[0][0, 1 * 1024 + 2 * 32 + 3]


def test_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    pixels, labels = cifar10_records()
    members = python_members()
    for number, name in enumerate(BATCHES):
        members[f"cifar-10-batches-py/{name}"] = python_2_pickle(pixels[number], labels[number].tolist())
    data = read(write_archive(tmp_path / "a.tar.gz", members))
    assert np.array_equal(data.train.images[:].reshape(-1, 3072), np.concatenate(pixels[:5]))


def python_2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote it, with byte strings (opcodes S, T) that Python 3 no longer writes."""
    data = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    data += b"(I1\n(I%d\nI3072\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n" % len(pixels)
    data += b"T" + pixels.nbytes.to_bytes(4, "little") + pixels.tobytes() + b"tb"
    listed = b"(l" + b"".join(b"I%d\na" % label for label in labels)
    return b"(dS'data'\n" + data + b"sS'labels'\n" + listed + b"s."


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_pickle_of_every_protocol_below_5_and_every_order_is_read(order: Any, protocol: int, tmp_path: Path) -> None:
    pixels, _labels = cifar10_records()
    members = python_members()
    batch = pickle.loads(members[FIRST_PY])
    batch[b"data"] = np.array(pixels[0], order=order)
    members[FIRST_PY] = pickle.dumps(batch, protocol)
    data = read(write_archive(tmp_path / "a.tar.gz", members))
    assert np.array_equal(data.train.images[:BATCH_SAMPLES].reshape(-1, 3072), pixels[0])


def test_published_archive_is_recognised_by_its_hash(binary: Path) -> None:
    source = read(binary).source
    assert source == Provenance("cifar10", "any-name.tar.gz", file_sha256(binary), published=False)
    published = replace(SMALL_CIFAR10, published_sha256=(file_sha256(binary),))
    assert read_archive(binary, published, binary.parent).source == Provenance(
        "cifar10", "any-name.tar.gz", file_sha256(binary), published=True
    )


@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.9, -1])
def test_truncated_archive_is_refused(kept: float, binary: Path) -> None:
    content = binary.read_bytes()
    binary.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "truncated" in refused(binary)


def test_archive_with_one_altered_byte_is_refused(binary: Path) -> None:
    content = bytearray(binary.read_bytes())
    content[len(content) // 2] ^= 1
    binary.write_bytes(content)
    assert "damaged" in refused(binary)


def test_wrong_checksum_after_the_last_member_is_found(binary: Path) -> None:
    content = bytearray(binary.read_bytes())
    content[-8] ^= 1  # gzip's CRC-32 of the whole stream
    binary.write_bytes(content)
    assert "CRC" in refused(binary)


def test_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"<html>404</html>")
    assert "gzip" in refused(path)
    path.write_bytes(gzip.compress(b"not a tar" * 1000))
    assert "not a complete .tar.gz" in refused(path)


def test_missing_archive_and_folder_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.tar.gz")
    assert "not a regular file" in refused(tmp_path)


def test_another_tar_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    message = refused(write_archive(tmp_path / "a.tar.gz", {"cifar-100-binary/train.bin": b"x" * 3074}))
    assert "not a CIFAR-10 archive: it holds cifar-100-binary/train.bin, and lacks" in message


@pytest.mark.parametrize("members", [binary_members, python_members])
def test_missing_batch_is_reported(members: Callable[[], dict[str, bytes]], tmp_path: Path) -> None:
    contents = {name: content for name, content in members().items() if "data_batch_3" not in name}
    assert "data_batch_3" in refused(write_archive(tmp_path / "a.tar.gz", contents))


def test_one_member_of_the_other_archive_is_ignored(tmp_path: Path) -> None:
    name, content = next(iter(binary_members().items()))
    data = read(write_archive(tmp_path / "a.tar.gz", {name: content, **python_members()}))
    assert len(data.train.labels) == 5 * BATCH_SAMPLES


def test_batch_of_another_size_is_refused(tmp_path: Path) -> None:
    members = binary_members()
    members[FIRST_BIN] += b"x"
    assert f"{BATCH_SAMPLES * 3073:,}" in refused(write_archive(tmp_path / "a.tar.gz", members))


def test_label_above_nine_is_reported(tmp_path: Path) -> None:
    members = binary_members()
    members[FIRST_BIN] = b"\x0a" + members[FIRST_BIN][1:]
    message = refused(write_archive(tmp_path / "a.tar.gz", members))
    assert f"{FIRST_BIN}: labels is not a list of 20 whole numbers from 0 to 9" in message


def test_class_names_in_another_order_are_refused(tmp_path: Path) -> None:
    members = binary_members()
    members["cifar-10-batches-bin/batches.meta.txt"] = "\n".join(reversed(CONTENTS.classes)).encode()
    assert "has other classes than CIFAR-10: [b'truck', b'ship'" in refused(
        write_archive(tmp_path / "a.tar.gz", members)
    )
    members = python_members()
    members[META_PY] = pickle.dumps({b"label_names": [b"cat"] * 10}, protocol=2)
    assert "has other classes than CIFAR-10: [b'cat', b'cat'" in refused(write_archive(tmp_path / "b.tar.gz", members))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_member_that_is_not_a_regular_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(FIRST_BIN)
        entry.type, entry.linkname = kind, "/etc/passwd"
        tar.addfile(entry)
    assert "not a regular file" in refused(path)


def test_member_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    content = binary_members()[FIRST_BIN]
    with tarfile.open(path, "w:gz") as tar:
        for _ in range(2):
            entry = tarfile.TarInfo(FIRST_BIN)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    assert "or occurs twice" in refused(path)


@pytest.mark.timeout(20)
def test_a_member_that_states_an_endless_size_is_refused_at_once(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("x")
    entry.size = 1 << 60
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    assert "not a complete .tar.gz" in refused(path)


def test_a_forged_sparse_member_is_refused(tmp_path: Path) -> None:
    """It makes tarfile raise an IndexError."""
    entry = tarfile.TarInfo("x")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # more of the map follows
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(header[:512])))
    assert "not a complete .tar.gz" in refused(path)


def test_decompression_bomb_is_refused_early(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.tar.gz", {"zeros": bytes(64 << 20)})
    assert path.stat().st_size < 1 << 20
    assert "far more than CIFAR-10" in refused(path)


def test_an_archive_of_many_files_is_refused(tmp_path: Path) -> None:
    members = {f"x/{number}": b"" for number in range(101)} | binary_members()
    assert "more than 100 files; not a CIFAR-10 archive" in refused(write_archive(tmp_path / "a.tar.gz", members))


def pax_header(size: int) -> bytes:
    """A header of pax records without content."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, size
    return entry.tobuf(tarfile.USTAR_FORMAT)


def test_long_headers_and_headers_of_headers_are_refused(tmp_path: Path) -> None:
    """Before Python 3.11.10, tarfile takes an hour to read 1 MiB of digits."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(pax_header(1 << 11) + b"1" * (1 << 11) + bytes(1024)))
    assert "a header of 2,048 bytes" in refused(path)
    path.write_bytes(gzip.compress(pax_header(0) * 2000))
    assert "not a complete .tar.gz file (maximum recursion depth" in refused(path)


MEMORY_OF_READING = f"""
{PEAK_MEMORY}
import sys
from dataclasses import replace
from pathlib import Path
from data_prep.cifar import read_archive
from data_prep.sources.cifar10 import CONTENTS
def most(path, first):
    read_archive(path, replace(CONTENTS, samples=(first, 20, 20, 20, 20, 20)), path.parent)
    return peak()
small, large = map(Path, sys.argv[1:])
before = most(small, 20)
print(most(large, 10_000) - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["binary", "pickled"])
def test_a_batch_is_larger_than_the_memory_that_reading_needs(form: str, tmp_path: Path) -> None:
    """10,000 images as in the published archives, 30,000 KiB; the pickle is of Python 2, as theirs are."""
    paths = []
    for count in (BATCH_SAMPLES, 10_000):
        members = binary_members() if form == "binary" else python_members()
        pixels = np.zeros((count, 3072), np.uint8)
        labels = np.zeros((count, 1), np.uint8)
        if form == "binary":
            members[FIRST_BIN] = np.concatenate([labels, pixels], axis=1).tobytes()
        else:
            members[FIRST_PY] = python_2_pickle(pixels, labels[:, 0].tolist())
        paths.append(write_archive(tmp_path / f"{count}.tar.gz", members))
    program = [sys.executable, "-c", MEMORY_OF_READING, *map(str, paths)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 25_000  # KiB


@pytest.mark.slow
@pytest.mark.cifar10
def test_both_real_archives_hold_the_same_60000_images_which_are_packed_and_sound(
    cifar10_archive: Path, tmp_path: Path
) -> None:
    binary = read_archive(cifar10_archive, CONTENTS, tmp_path)
    pickled = read_archive(cifar10_archive.with_name("cifar-10-python.tar.gz"), CONTENTS, tmp_path)
    assert binary.train.images.shape == (50_000, 3, 32, 32)
    for one, other in ((binary.train, pickled.train), (binary.test, pickled.test)):
        assert np.array_equal(one.images[:], other.images[:])
        assert np.array_equal(one.labels, other.labels)
    mean = pack(tmp_path / "set", binary).mean
    assert np.allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-4)  # published; the JPEG copy is close
    assert verify(tmp_path / "set").problems == []
