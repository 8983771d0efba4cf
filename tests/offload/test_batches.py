"""What a batch must be is checked before the first byte is read, alike by all that take one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_streaming import IGNORED, batch, streamed
from tiny_models import lora_on, write

from labkit.offload import StreamedLM, assemble
from labkit.offload.batches import complete
from labkit.offload.head import pieces

IDS = torch.ones(2, 3, dtype=torch.long)
NO_IDS: list[tuple[Any, str]] = [
    ([1, 2], "the batch holds list; input_ids"),
    ({}, "the batch holds nothing; input_ids"),
    ({"input_ids": [[1, 2, 3]]}, "input_ids is of type list"),
    ({"input_ids": IDS.float()}, r"input_ids are torch\.float32 of shape \(2, 3\)"),
    ({"input_ids": IDS.bool()}, r"input_ids are torch\.bool"),
    ({"input_ids": IDS[0]}, r"of shape \(3,\)"),
    ({"input_ids": IDS[:0]}, r"of shape \(0, 3\)"),
    ({"input_ids": 97 * IDS}, "input_ids reach from 97 to 97; the vocabulary is 97"),
    ({"input_ids": -IDS}, "input_ids reach from -1 to -1"),
    ({"input_ids": IDS.int() * 97}, "input_ids reach from 97"),
]
NO_MASK: list[tuple[Any, str]] = [
    ({"input_ids": IDS, "attention_mask": IDS[:, :2]}, r"attention_mask has the shape \(2, 2\)"),
    ({"input_ids": IDS, "attention_mask": 2 * IDS}, "attention_mask holds other values than 0 and 1"),
    ({"input_ids": IDS, "attention_mask": 0.5 * IDS}, "attention_mask holds other values than 0 and 1"),
    ({"input_ids": IDS, "attention_mask": IDS.float() * float("nan")}, "attention_mask holds other values"),
    ({"input_ids": IDS, "attention_mask": [[1, 1, 1]] * 2}, "attention_mask is of type list"),
]
NO_LABELS: list[tuple[Any, str]] = [
    ({"input_ids": IDS, "labels": -IDS}, "labels reach from -1 to -1; the vocabulary is 97, and -100 stands for no"),
    ({"input_ids": IDS, "labels": 97 * IDS}, "labels reach from 97 to 97"),
    ({"input_ids": IDS, "labels": -101 * IDS}, "labels reach from -101"),
    ({"input_ids": IDS, "labels": IDS.float()}, r"labels are torch\.float32"),
    ({"input_ids": IDS, "labels": IDS[:, :2]}, r"labels has the shape \(2, 2\)"),
    ({"input_ids": IDS, "labels": IGNORED * IDS}, "no position of the batch has a label"),
    ({"input_ids": IDS, "attention_mask": 0 * IDS}, "no position of the batch has a label"),
    ({"input_ids": IDS[:, :1]}, "no position of the batch has a label"),
]
NO_PROMPTS: list[tuple[Any, str]] = [
    ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}, "sample 1 ends with padding"),
    ({"input_ids": IDS, "attention_mask": 0 * IDS}, "sample 0 ends with padding"),
]


def methods(own: StreamedLM) -> dict[str, Any]:
    optimizer = torch.optim.SGD(own.adapters().values(), lr=0.1)
    return {
        "gradients": own.gradients,
        "step": lambda data: own.step(data, optimizer),
        "score": own.score,
        "generate": lambda data: own.generate(data["input_ids"], data.get("attention_mask"), max_new_tokens=2),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StreamedLM:
    folder = tmp_path_factory.mktemp("phi3")
    return streamed(folder, lora_on(write(folder, "phi3"), [0]))


@pytest.mark.parametrize("method", ["gradients", "step", "score", "generate"])
def test_what_is_no_batch_is_refused_before_a_byte_is_read(method: str, model: StreamedLM) -> None:
    ids_and_mask = [*NO_IDS[2:], *NO_MASK]
    for data, why in ids_and_mask + (NO_PROMPTS if method == "generate" else NO_IDS[:2] + NO_LABELS):
        with pytest.raises(ValueError, match=why):
            methods(model)[method](data)
    passes = model.passes
    assert passes.store.reader.n_bytes == passes.pool.counts.loads == model.step_number == 0


@pytest.mark.parametrize("n_pieces", [1, 4])
def test_integers_of_every_width_are_ids_masks_and_labels(
    n_pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if n_pieces > 1:
        monkeypatch.setattr(
            assemble, "pieces", lambda entry, buffer_bytes, size: pieces(entry, 30 * entry.shape[1] * size, size)
        )
    own, data = streamed(tmp_path, lora_on(write(tmp_path, "phi3"), [0])), batch()
    assert len(own.passes.head.pieces) == n_pieces
    loss, wanted = own.gradients(data)
    tokens = own.generate(data["input_ids"], max_new_tokens=3)
    for ids, mask, labels in ((torch.int32, torch.bool, torch.int16), (torch.uint8, torch.float32, torch.int32)):
        like = {"input_ids": data["input_ids"].to(ids), "attention_mask": data["attention_mask"].to(mask)}
        again = own.gradients(like | {"labels": data["labels"].to(labels)})
        assert again[0] == loss
        assert all(torch.equal(again[1][name], wanted[name]) for name in wanted)
        assert torch.equal(own.score(like | {"labels": data["labels"]}), own.score(data))
        assert torch.equal(own.generate(like["input_ids"], max_new_tokens=3), tokens)
    with pytest.raises(ValueError, match="labels reach from -1"):
        own.gradients(data | {"labels": data["labels"].masked_fill(data["labels"] == IGNORED, -1)})


def test_more_tokens_may_be_known_than_predicted() -> None:
    """Labels are held against what the head tells apart, ids against the embedding."""
    assert complete({"input_ids": IDS * 7}, 8, 8)["labels"].tolist() == (IDS * 7).tolist()
    with pytest.raises(ValueError, match="labels reach from 7 to 7; the vocabulary is 7"):
        complete({"input_ids": IDS * 7}, 8, 7)
