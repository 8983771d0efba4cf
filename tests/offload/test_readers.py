"""Readers against the bytes of the file itself, and against files that end early."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from labkit.offload import readers
from labkit.offload.boundaries import Spilled
from labkit.offload.headers import Entry, Run
from labkit.offload.readers import Reader, ReadError, calibrate, disk_bytes_read
from labkit.offload.store import Store, lay_out, read_rows, read_tensor

N_BYTES = 3 * readers.REQUEST + 12_345


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "bytes"
    path.write_bytes(os.urandom(N_BYTES))
    return path


def reader(way: str, file: Path) -> Reader:
    """Return a reader, or skip where the file system of the temporary folder has no direct reads."""
    own = Reader(way)
    try:
        own.read(Run(file=file, start=0, names=("a",), n_bytes=1), [torch.empty(1, dtype=torch.uint8)])
    except ReadError as error:
        if way != "direct":
            raise
        pytest.skip(str(error))
    return own


@pytest.mark.parametrize("way", readers.WAYS)
@pytest.mark.parametrize("start", [0, 1, 4096, 8 + 4095])
def test_every_way_delivers_the_bytes_of_the_file_into_scattered_tensors(file: Path, way: str, start: int) -> None:
    own = reader(way, file)
    sizes = [1, 7, 0, readers.REQUEST, 100_000, readers.REQUEST - 5]
    targets = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    own.read(Run(file=file, start=start, names=("a",), n_bytes=sum(sizes)), targets)
    expected = file.read_bytes()[start : start + sum(sizes)]
    assert bytes(torch.cat(targets).numpy()) == expected
    assert own.n_bytes == sum(sizes) + 1
    own.close()


@pytest.mark.parametrize("way", readers.WAYS)
def test_the_last_bytes_of_a_file_can_be_read_and_no_more(file: Path, way: str) -> None:
    own = reader(way, file)
    tail = torch.zeros(100, dtype=torch.uint8)
    own.read(Run(file=file, start=N_BYTES - 100, names=("tail",), n_bytes=100), [tail])
    assert bytes(tail.numpy()) == file.read_bytes()[-100:]
    with pytest.raises(ReadError, match=r"tail and what follows.*it ends at byte.*fetch the file again"):
        own.read(Run(file=file, start=N_BYTES - 50, names=("tail",), n_bytes=100), [tail])


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"gone: bytes 0 to 1 \(a and what follows\).*No such file"):
        Reader().read(
            Run(file=tmp_path / "gone", start=0, names=("a",), n_bytes=1), [torch.empty(1, dtype=torch.uint8)]
        )


def test_a_request_that_the_kernel_cuts_short_is_continued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, vectors, at: whole(fd, [vectors[0][: max(1, len(vectors[0]) // 3)]], at)
    )
    targets = [torch.zeros(1000, dtype=torch.uint8), torch.zeros(77, dtype=torch.uint8)]
    Reader().read(Run(file=file, start=5, names=("a",), n_bytes=1077), targets)
    assert bytes(torch.cat(targets).numpy()) == file.read_bytes()[5:1082]


def test_calibration_measures_each_way_that_works(file: Path) -> None:
    found = calibrate([file], seconds=0.2)
    assert set(found.bytes_per_second) | set(found.refused) == {"drop", "direct"}
    assert all(rate > 0 for rate in found.bytes_per_second.values())


@pytest.mark.parametrize(("direct", "way"), [(0.5, "drop"), (1.05, "drop"), (1.2, "direct"), (None, "drop")])
def test_calibration_takes_the_direct_way_where_it_is_clearly_faster(
    direct: float | None, way: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(path: Path, n_bytes: int, tried: str, *_: object) -> float:
        if tried == "direct" and direct is None:
            raise readers.ReadError("no direct reads") from OSError(errno.EINVAL, "invalid argument")
        return 1e9 * (direct if tried == "direct" else 1.0)

    monkeypatch.setattr(readers, "_rate", rate)
    found = calibrate([file])
    assert found.way == way
    assert ("direct" in found.refused) == (direct is None)


def entry(file: Path, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Entry:
    return Entry(file=file, dtype=dtype, shape=shape, start=start)


def test_a_layer_is_laid_out_aligned_and_in_the_type_that_is_computed_in(file: Path) -> None:
    entries = {"b": entry(file, 30, (5, 3), torch.bfloat16), "a": entry(file, 0, (15,), torch.bfloat16)}
    for dtype in (torch.bfloat16, torch.float32):
        store = Store(Reader(), [lay_out(entries, dtype)])
        memory = readers.page_aligned(store.buffer_bytes)
        store.fill(0, memory)
        views = store.views(0, memory)
        raw = torch.frombuffer(bytearray(file.read_bytes()[:60]), dtype=torch.bfloat16)
        assert torch.equal(views["a"].nan_to_num(), raw[:15].to(dtype).nan_to_num())
        assert torch.equal(views["b"].nan_to_num(), raw[15:].view(5, 3).to(dtype).nan_to_num())
        assert all(view.data_ptr() % readers.ALIGNMENT == 0 and view.dtype == dtype for view in views.values())


def test_rows_of_an_embedding_are_those_of_the_matrix(file: Path) -> None:
    table = entry(file, 64, (1000, 8), torch.float32)
    whole = read_tensor(Reader(), table, torch.float32)
    rows = torch.tensor([0, 1, 2, 500, 998, 999])
    own = Reader()
    assert torch.equal(read_rows(own, table, rows, torch.float32).nan_to_num(), whole[rows].nan_to_num())
    assert own.n_bytes == 6 * 32


def test_hidden_states_in_a_file_are_read_once_on_the_way_back(tmp_path: Path) -> None:
    """The file is read backwards; ahead of a read lies what was used already. The reference is the kernel's count."""
    kept, hidden = Spilled(tmp_path), torch.ones(1 << 20, dtype=torch.uint8)
    for layer in range(16):
        kept.put(layer, hidden)
    before = disk_bytes_read()
    for layer in reversed(range(16)):
        assert torch.equal(kept.take(layer), hidden)
    kept.close()
    assert disk_bytes_read() - before <= 1.01 * 16 * hidden.numel()
