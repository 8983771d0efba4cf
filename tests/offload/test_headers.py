"""Headers of checkpoints: what safetensors itself wrote, and files that lie.

The reference for a good header is safetensors' own reader; every hostile file is made here byte by byte.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from labkit.offload.headers import INDEX, DamagedCheckpoint, Entry, open_checkpoint, read_header, runs

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(6, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0, dtype=torch.float16),
    "empty": torch.zeros(0, 5),
}


def write(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(offsets: Any = (0, 8), shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets}


def test_every_tensor_is_found_where_safetensors_put_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file, metadata={"format": "pt"})
    entries = read_header(file)
    raw = file.read_bytes()
    for name, expected in load_file(file).items():
        entry = entries[name]
        assert (entry.dtype, entry.shape) == (expected.dtype, tuple(expected.shape))
        found = torch.frombuffer(bytearray(raw[entry.start : entry.end]) or bytearray(1), dtype=torch.uint8)
        assert torch.equal(found[: entry.n_bytes], expected.contiguous().view(-1).view(torch.uint8))
    assert sum(entry.n_bytes for entry in entries.values()) == 48 + 12 + 2


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        ({"a": tensor()}, b"x" * 8, 10**9, "claims 1000000000 bytes"),
        ({"a": tensor()}, b"x" * 8, 2**63, "claims 9223372036854775808 bytes"),
        (b"{", b"", None, "holds no JSON"),
        (b"[]", b"", None, "holds list, not an object"),
        (b"[" * 60_000, b"", None, "holds no JSON"),
        (b'{"a": {}, "a": {}}', b"", None, "'a' stands twice"),
        (b"\xff\xfe", b"", None, "holds no JSON"),
        ({"a": {"dtype": "F32"}}, b"", None, "lacks a dtype, shape or data_offsets"),
        ({"a": 3}, b"", None, "lacks a dtype"),
        ({"a": tensor(dtype="F33")}, b"x" * 8, None, "the type 'F33'"),
        ({"a": tensor(dtype=["F32"])}, b"x" * 8, None, "lacks a dtype"),
        ({"a": tensor(shape=(-2,))}, b"x" * 8, None, "the shape"),
        ({"a": tensor(shape=(True, 2))}, b"x" * 8, None, "the shape"),
        ({"a": tensor(shape=2)}, b"x" * 8, None, "the shape"),
        ({"a": tensor(shape=(2**40, 2**40))}, b"x" * 8, None, "has 8 bytes, not"),
        ({"a": tensor(shape=(2**70,))}, b"x" * 8, None, "the shape"),
        ({"a": tensor((8, 0))}, b"x" * 8, None, "has -8 bytes, not 8"),
        ({"a": tensor((0, 4))}, b"x" * 4, None, "has 4 bytes, not 8"),
        ({"a": tensor((0, 8, 16))}, b"x" * 8, None, "the offsets"),
        ({"a": tensor((0, 8))}, b"x" * 4, None, "end at byte"),
        ({"a": tensor((0, 8))}, b"x" * 12, None, "end at byte"),
        ({"a": tensor((0, 8)), "b": tensor((4, 12))}, b"x" * 12, None, "tensor b starts at byte"),
        ({"a": tensor((0, 8)), "b": tensor((12, 20))}, b"x" * 20, None, "tensor b starts at byte"),
        ({"a": tensor((10**9, 10**9 + 8))}, b"x" * 8, None, "starts at byte"),
    ],
)
def test_a_header_that_lies_is_refused_by_name(
    tmp_path: Path, header: Any, data: bytes, length: int | None, message: str
) -> None:
    file = write(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(DamagedCheckpoint, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "fetch or save it again" in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_file_cut_within_its_length_is_refused(tmp_path: Path, size: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 100)[:size])
    with pytest.raises(DamagedCheckpoint, match="its header claims"):
        read_header(file)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_byte_in_a_header_is_refused_or_leaves_all_bytes_inside_the_file(
    tmp_path: Path, data: st.DataObject
) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: TENSORS[name] for name in ("a.weight", "b.weight")}, file)
    raw = bytearray(file.read_bytes())
    n_header = 8 + struct.unpack("<Q", raw[:8])[0]
    raw[data.draw(st.integers(0, n_header - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(raw)
    try:
        entries = read_header(file)
    except DamagedCheckpoint:
        return
    assert all(8 <= entry.start <= entry.end <= len(raw) for entry in entries.values())


def folder(path: Path, weight_map: Any, files: dict[str, dict[str, torch.Tensor]]) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    for name, tensors in files.items():
        save_file(tensors, path / name)
    if weight_map is not None:
        (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_a_sharded_checkpoint_is_read_through_its_index(tmp_path: Path) -> None:
    a, b = {"a": torch.ones(2)}, {"b": torch.ones(3)}
    found = open_checkpoint(
        folder(tmp_path / "m", {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": a, "2.safetensors": b})
    )
    assert {name: entry.file.name for name, entry in found.entries.items()} == {
        "a": "1.safetensors",
        "b": "2.safetensors",
    }
    assert found.n_bytes == 20


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../outside.safetensors"}, "no file in its folder"),
        ({"a": "below/../../outside.safetensors"}, "no file in its folder"),
        ({"a": "/etc/passwd"}, "no file in its folder"),
        ({"a": ".."}, "no file in its folder"),
        ({"a": ""}, "no file in its folder"),
        ({"a": "gone.safetensors"}, "which is not there"),
        ({"a": 3}, "does not map names"),
        ([], "does not map names"),
        ({}, "does not map names"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    own = folder(tmp_path / "m", weight_map, {"1.safetensors": {"a": torch.ones(2)}})
    with pytest.raises(DamagedCheckpoint, match=message):
        open_checkpoint(own)


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no safetensors file"):
        open_checkpoint(tmp_path)
    for name in ("1.safetensors", "2.safetensors"):
        save_file({"a": torch.ones(2)}, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"2 safetensors files \(1\.safetensors, 2\.safetensors\) and no"):
        open_checkpoint(tmp_path)


KINDS = ["F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4", "U16", "U32", "U64"]


@pytest.mark.parametrize("kind", [*KINDS, "C64", "I8", "BOOL"])
def test_every_type_of_safetensors_is_known_with_its_width(tmp_path: Path, kind: str) -> None:
    widths = {"F6": 6, "F4": 4, "F8": 8, "I8": 8, "BO": 8, "U1": 16, "U3": 32, "U6": 64, "C6": 64}
    n_bytes = 8 * widths[kind[:2]] // 8
    header = {"a": tensor((0, n_bytes), (8,), kind), "b": tensor((n_bytes, n_bytes + 4), (1,))}
    file = write(tmp_path / "model.safetensors", header, bytes(n_bytes + 4))
    with safe_open(file, "pt") as theirs:
        assert theirs.get_slice("a").get_dtype() == kind
    assert {name: entry.n_bytes for name, entry in read_header(file).items()} == {"a": n_bytes, "b": 4}
    write(file, {"a": tensor((0, n_bytes - 1), (8,), kind)}, bytes(n_bytes - 1))
    with pytest.raises(DamagedCheckpoint, match=f"has {n_bytes - 1} bytes, not {n_bytes}"):
        read_header(file)


def test_neighbours_are_joined_into_runs() -> None:
    file, other = Path("x"), Path("y")
    places = {"a": (file, 8), "b": (file, 16), "c": (file, 32), "d": (other, 40)}
    entries = {n: Entry(file=f, dtype=torch.float32, shape=(2,), start=at) for n, (f, at) in places.items()}
    assert [(run.names, run.start, run.n_bytes) for run in runs(entries)] == [
        (("a", "b"), 8, 16),
        (("c",), 32, 8),
        (("d",), 40, 8),
    ]


def test_a_fingerprint_tells_other_weights_and_settings(tmp_path: Path) -> None:
    own = folder(tmp_path / "m", None, {"model.safetensors": {"a": torch.ones(8)}})
    before = open_checkpoint(own).fingerprint()
    assert before == open_checkpoint(own).fingerprint()
    save_file({"a": torch.ones(8) * 2}, own / "model.safetensors")
    assert open_checkpoint(own).fingerprint() != before
    save_file({"a": torch.ones(8)}, own / "model.safetensors")
    assert open_checkpoint(own).fingerprint() == before
    (own / "config.json").write_text('{"x": 1}')
    assert open_checkpoint(own).fingerprint() != before
