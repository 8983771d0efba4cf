"""The parameters of report 001: streamed steps, learning beside a resident twin, and the whole shape."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from labkit.workflow.schema import Layer, ModelName, Params, check_lists

CORPUS = "wiki-sample"
"""Text that both arms of the learning comparison learn from."""
StreamedShape = Literal["phi3-30m", "phi3-1b", "phi3-2.5b", "phi-4"]
"""Random-weight shapes that labkit.reports.chunked_offload.speed streams by name."""


class ChunkedOffload(Params):
    """Report 001: train adapters of a model far larger than memory, many samples for each pass over the weights."""

    report = "chunked_offload"

    streamed_shape: Annotated[StreamedShape, Layer.SCOPE]
    """Random-weight shape that is streamed from disk and timed."""
    weights_dtype: Annotated[Literal["float32", "bfloat16"], Layer.SCOPE]
    """Type of its weights on disk and at work; adapters stay float32."""
    budget_gib: Annotated[PositiveFloat, Layer.SCOPE]
    """Memory of the whole process in GiB while that shape is trained, enforced by the kernel."""
    batch_sizes: Annotated[list[PositiveInt], Layer.SCOPE]
    """Samples of a step that are compared, 1 first: the same mathematics with fewer samples a pass."""
    speed_repeats: Annotated[PositiveInt, Layer.SCOPE]
    """Timed steps of each batch size, interleaved, with the ablations beside them."""
    slowdowns: Annotated[list[PositiveInt], Layer.SCOPE]
    """How many times as long each read takes while the law of the gain is tested, 1 first; empty for no slowing."""
    learn_model: Annotated[ModelName, Layer.SCOPE]
    """Pretrained model whose learning is compared with the same training resident in memory."""
    learn_batch_sizes: Annotated[list[PositiveInt], Layer.SCOPE]
    """Samples of a step in the learning comparison."""
    learn_steps: Annotated[PositiveInt, Layer.SCOPE]
    """Optimizer steps of each learning arm."""
    held_out_windows: Annotated[PositiveInt, Layer.SCOPE]
    """Held-out windows scored before and after."""
    full_steps: Annotated[int, Field(ge=0), Layer.SCOPE]
    """Optimizer steps of the whole phi-4 shape within 4 GiB; 0 leaves it out: its random weights take 29 GB of disk."""
    seeds: Annotated[list[int], Layer.SCOPE]
    """Seeds of the learning arms: adapters and order of the windows."""
    seq_len: Annotated[PositiveInt, Layer.SCIENCE]
    """Tokens of a sample while speed is measured."""
    learn_seq_len: Annotated[PositiveInt, Layer.SCIENCE]
    """Tokens of a window of real text."""
    lora_rank: Annotated[PositiveInt, Layer.SCIENCE]
    """Rank of the adapters."""
    lora_alpha: Annotated[PositiveInt, Layer.SCIENCE]
    """Scale of the adapters, divided by the rank."""
    trained_ends: Annotated[PositiveInt, Layer.SCIENCE]
    """Layers with adapters at either end of the stack."""
    speed_learning_rate: Annotated[PositiveFloat, Layer.SCIENCE]
    """AdamW's rate while speed is measured."""
    learning_rate: Annotated[PositiveFloat, Layer.SCIENCE]
    """AdamW's rate of the learning arms."""
    bootstrap: Annotated[PositiveInt, Layer.SCIENCE]
    """Resamples behind every interval."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        check_lists(self, "batch_sizes", "learn_batch_sizes", "seeds")
        if self.batch_sizes[0] != 1 or self.batch_sizes != sorted(self.batch_sizes):
            raise ValueError(f"batch_sizes must begin with 1 and grow; got {self.batch_sizes}")
        if self.slowdowns and (self.slowdowns[0] != 1 or self.slowdowns != sorted(set(self.slowdowns))):
            raise ValueError(f"slowdowns must begin with 1 and grow, or be empty; got {self.slowdowns}")
        return self
