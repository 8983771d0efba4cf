"""The parameters of report 000: preference training, a ladder of timed shapes, questions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from labkit.schema import Layer, ModelName, Params, check_lists

RungName = Literal[
    "qwen2-16m", "qwen2-48m", "qwen2-110m", "qwen2-250m", "qwen2.5-0.5b", "qwen2-1b", "phi-2", "qwen2.5-7b"
]
"""Random-weight shapes that labkit.inertia.ladder builds by name."""


class SizeInertia(Params):
    """Report 000: DPO on a small and a larger model, time against size, routing between sizes, energy."""

    report = "size_inertia"

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
    fidelity_tokens: Annotated[PositiveInt, Layer.SCOPE]
    """Tokens of held-out text that each quantized pretrained model reads."""
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
        check_lists(self, *names, "shuffles", "seeds")
        if strangers := sorted(set(self.control_models) - set(self.models)):
            raise ValueError(f"control_models names {', '.join(strangers)}, which models does not list")
        if strangers := sorted(set(self.quantized) - set(self.ladder)):
            raise ValueError(f"quantized names {', '.join(strangers)}, which ladder does not list")
        return self
