"""The parameters of each report as strict models, a sentence for each value.

Every field is marked with the layer that may set it: the science (what the report set out to do), the scope (how much
of it) or the machine. `labkit.params` reads the files and enforces the layers.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

ModelName = Literal["smollm2-135m", "gemma-3-270m", "qwen2.5-0.5b", "phi-2", "qwen2.5-7b", "gpt2", "phi-4", "bitnet-2b"]
"""Pretrained models that labkit.models loads by name."""
RungName = Literal[
    "qwen2-16m", "qwen2-48m", "qwen2-110m", "qwen2-250m", "qwen2.5-0.5b", "qwen2-1b", "phi-2", "qwen2.5-7b"
]
"""Random-weight shapes that labkit.inertia.ladder builds by name."""


class Layer(StrEnum):
    """Which file may set a value."""

    SCIENCE = "science"
    SCOPE = "scope"
    MACHINE = "machine"


class Scale(StrEnum):
    """How much of the report's own experiment a run holds."""

    SMOKE = "smoke"
    CUSTOM = "custom"
    REDUCED = "reduced"
    STATED = "stated"


class Params(BaseModel):
    """What every report has: the machine. Each report adds its science and scope."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    hardware: Annotated[str, Layer.MACHINE]
    """Name of the hardware profile: a file in params/hardware."""
    smoke: Annotated[bool, Layer.MACHINE] = False
    """Whether the profile only shows that everything runs; its numbers are never evidence."""
    device: Annotated[Literal["cpu", "cuda"], Layer.MACHINE] = "cpu"
    """Device that holds models and data."""
    dtype: Annotated[Literal["float32", "bfloat16"], Layer.MACHINE] = "float32"
    """Compute type of matrix products; parameters and optimizer state stay float32."""
    workers: Annotated[PositiveInt, Layer.MACHINE] = 1
    """Number of cells trained side by side, each in its own process."""
    threads: Annotated[PositiveInt, Layer.MACHINE] = 1
    """CPU threads of each worker."""
    memory_gib: Annotated[PositiveFloat, Layer.MACHINE] = 8.0
    """Memory the profile may use on its device, in GiB (2^30 bytes)."""
    assumed_tflops: Annotated[PositiveFloat, Layer.MACHINE] = 0.05
    """Sustained training rate in TFLOP/s assumed for a cost plan when the device is not here to be measured."""

    @classmethod
    def report_id(cls) -> str:
        """The report these parameters belong to."""
        return next(name for name, model in REPORTS.items() if model is cls)

    @classmethod
    def layer(cls, name: str) -> Layer:
        """Return which layer a field belongs to."""
        return next(mark for mark in cls.model_fields[name].metadata if isinstance(mark, Layer))

    @classmethod
    def float_fields(cls) -> set[str]:
        """Return the fields that hold floats or lists of floats; a whole number given there means a float."""
        return {name for name, field in cls.model_fields.items() if "float" in str(field.annotation)}

    def digest(self) -> str:
        """Return the sha256 of every value, as 64 hex digits."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


class ScalingGrid(Params):
    """Report 004: train a d_model x n_layers grid of language models and fit a law through it."""

    corpus: Annotated[Literal["wikitext-2", "wiki-sample"], Layer.SCOPE]
    """Text the grid is trained and validated on."""
    vocab_size: Annotated[PositiveInt, Layer.SCOPE]
    """Tokens of the byte-level BPE trained on the training split."""
    d_model: Annotated[list[PositiveInt], Layer.SCOPE]
    """Widths of the grid."""
    n_layers: Annotated[list[PositiveInt], Layer.SCOPE]
    """Depths of the grid."""
    epochs: Annotated[PositiveFloat, Layer.SCOPE]
    """Passes over the training split; a fraction stops within a pass, with the schedule completed."""
    batch_size: Annotated[PositiveInt, Layer.SCOPE]
    """Sequences per optimizer step."""
    dropout: Annotated[float, Field(ge=0, lt=1), Layer.SCOPE]
    """Dropout inside the blocks; 0 is right where the text is hardly repeated."""
    seeds: Annotated[list[int], Layer.SCOPE]
    """Seeds of every grid cell: initialisation and data order."""
    learning_rates: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Rates tried per width and mixer at the smallest depth; the list is extended until the best one lies inside it."""
    mixers: Annotated[list[Literal["resnet-bk", "transformer"]], Layer.SCIENCE]
    """Architectures trained on the same grid."""
    context: Annotated[PositiveInt, Layer.SCIENCE]
    """Tokens per sequence."""
    n_experts: Annotated[PositiveInt, Layer.SCIENCE]
    """Experts of each ResNet-BK layer, one of them active per token."""
    balance_loss: Annotated[float, Field(ge=0), Layer.SCIENCE]
    """Weight of the load-balance loss of the expert router."""
    weight_decay: Annotated[float, Field(ge=0), Layer.SCIENCE]
    """AdamW's decoupled decay, on matrices only."""
    beta2: Annotated[float, Field(gt=0, lt=1), Layer.SCIENCE]
    """AdamW's second-moment decay."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1), Layer.SCIENCE]
    """Share of the steps in which the rate rises linearly."""
    final_rate_fraction: Annotated[float, Field(ge=0, le=1), Layer.SCIENCE]
    """Rate at the last step, as a share of the peak; a cosine leads there."""
    grad_clip: Annotated[PositiveFloat, Layer.SCIENCE]
    """Largest global gradient norm."""
    kneser_ney_order: Annotated[PositiveInt, Layer.SCIENCE]
    """Order of the Kneser-Ney floor that every model is shown beside."""
    bootstrap: Annotated[PositiveInt, Layer.SCIENCE]
    """Resamples behind every interval of the fit."""

    @model_validator(mode="after")
    def _no_empty_or_repeated_axis(self) -> Self:
        _check_lists(self, ("d_model", "n_layers", "seeds", "learning_rates", "mixers"))
        return self


class SizeInertia(Params):
    """Report 000: DPO on a small and a larger model, time against size, routing between sizes, energy."""

    models: Annotated[list[ModelName], Layer.SCOPE]
    """Pretrained models that are trained, questioned and routed between, the smaller one first."""
    ladder: Annotated[list[RungName], Layer.SCOPE]
    """Random-weight shapes whose decoding and training steps are timed, smallest first."""
    quantized: Annotated[list[RungName], Layer.SCOPE]
    """Rungs that are also timed with quantized weights: the ratio of the last to the first is compared."""
    weights_dtype: Annotated[Literal["float32", "bfloat16"], Layer.SCOPE]
    """Type in which frozen weights are held, trained over and decoded with; adapters stay float32."""
    report_steps: Annotated[PositiveInt, Layer.SCOPE]
    """Optimizer steps run of the report's 75-step schedule; fewer stop it early and change nothing before."""
    tuned_steps: Annotated[PositiveInt, Layer.SCOPE]
    """Optimizer steps of each arm that completes its own schedule at the tuned rate: full, controls, smaller sets."""
    sweep_steps: Annotated[PositiveInt, Layer.SCOPE]
    """Optimizer steps of each rate of the sweep."""
    learning_rates: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Peak rates tried for each model, on four fifths of the pairs and judged on the rest."""
    control_models: Annotated[list[ModelName], Layer.SCOPE]
    """Models that also get the controls, the smaller data sets, and quantized weights on real text."""
    shuffles: Annotated[list[int], Layer.SCOPE]
    """Seeds of the shuffled labels, an arm each: one shuffle alone can lie on either side of chance."""
    dataset_sizes: Annotated[list[PositiveInt], Layer.SCOPE]
    """Numbers of training pairs compared at equal steps."""
    held_out_pairs: Annotated[PositiveInt, Layer.SCOPE]
    """Held-out pairs scored after each arm."""
    questions: Annotated[PositiveInt, Layer.SCOPE]
    """Checkable questions answered by every model for the routing matrix."""
    decode_repeats: Annotated[PositiveInt, Layer.SCOPE]
    """Timed repeats of each rung, interleaved with the copy bandwidth."""
    seeds: Annotated[list[int], Layer.SCOPE]
    """Seeds of the training arms: adapter initialisation and order of the pairs."""
    beta: Annotated[PositiveFloat, Layer.SCIENCE]
    """DPO's inverse temperature."""
    lora_rank: Annotated[PositiveInt, Layer.SCIENCE]
    """Rank of the adapters."""
    lora_alpha: Annotated[PositiveInt, Layer.SCIENCE]
    """Scale of the adapters, divided by the rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1), Layer.SCIENCE]
    """Dropout before each adapter."""
    lora_targets: Annotated[list[str], Layer.SCIENCE]
    """Names of the linear maps that get an adapter, as the report lists them."""
    batch_pairs: Annotated[PositiveInt, Layer.SCIENCE]
    """Pairs per optimizer step."""
    report_learning_rate: Annotated[PositiveFloat, Layer.SCIENCE]
    """Peak rate of the report's schedule."""
    report_warmup_steps: Annotated[int, Field(ge=0), Layer.SCIENCE]
    """Warm-up steps of the report's schedule."""
    prompt_tokens: Annotated[PositiveInt, Layer.SCIENCE]
    """Tokens of the timed prompt."""
    new_tokens: Annotated[PositiveInt, Layer.SCIENCE]
    """Tokens decoded in each timed repeat, exactly."""
    answer_tokens: Annotated[PositiveInt, Layer.SCIENCE]
    """Most tokens of an answer to a question."""
    bootstrap: Annotated[PositiveInt, Layer.SCIENCE]
    """Resamples behind every interval."""

    @model_validator(mode="after")
    def _no_empty_or_repeated_list(self) -> Self:
        names = ("models", "ladder", "quantized", "learning_rates", "control_models", "dataset_sizes")
        _check_lists(self, (*names, "shuffles", "seeds"))
        if strangers := sorted(set(self.control_models) - set(self.models)):
            raise ValueError(f"control_models names {', '.join(strangers)}, which models does not list")
        if strangers := sorted(set(self.quantized) - set(self.ladder)):
            raise ValueError(f"quantized names {', '.join(strangers)}, which ladder does not list")
        return self


class Claims(Params):
    """The ledger notebook: it only reads what other reports have published for the profile."""


def _check_lists(params: Params, names: tuple[str, ...]) -> None:
    for name in names:
        values = getattr(params, name)
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must list at least one value, none of them twice; got {values}")


REPORTS: dict[str, type[Params]] = {"claims": Claims, "size_inertia": SizeInertia, "scaling_grid": ScalingGrid}
