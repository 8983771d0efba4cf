"""The parameters of report 000: preference training, a ladder of timed shapes, questions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from labkit.workflow.schema import Layer, ModelName, Params, check_lists

RungName = Literal[
    "qwen2-16m", "qwen2-48m", "qwen2-110m", "qwen2-250m", "qwen2.5-0.5b", "qwen2-1b", "phi-2", "qwen2.5-7b"
]
"""Random-weight shapes that labkit.decoding.ladder builds by name."""
TierName = Annotated[str, Field(pattern=r"^[a-z0-9.-]+(\+notes)?(\*[1-9])?$")]
"""A way to answer: a model, with notes looked up, by the majority of some samples: `gemma-3-270m+notes*3`."""


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
    report_rates: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Peak rates at which the report's schedule is run with every seed; the report's own is one of them."""
    balanced_pairs: Annotated[NonNegativeInt, Layer.SCOPE]
    """Word-balanced pairs scored after each arm but those of the sweep; 0 for none."""
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
    tiers: Annotated[list[TierName], Layer.SCOPE]
    """Ways to answer the generated questions, between which queries are routed; none, or at least two."""
    generated_questions: Annotated[NonNegativeInt, Layer.SCOPE]
    """Generated questions that every tier answers."""
    factorial_widths: Annotated[list[PositiveInt], Layer.SCOPE]
    """Widths of the factorial of random-weight shapes; none for no factorial."""
    factorial_depths: Annotated[list[PositiveInt], Layer.SCOPE]
    """Its numbers of layers."""
    factorial_rounds: Annotated[PositiveInt, Layer.SCOPE]
    """Rounds in which every shape of it is timed once, each in a random order."""
    factorial_dtypes: Annotated[list[Literal["float32", "bfloat16"]], Layer.SCOPE]
    """Types its weights are held in, a factorial for each."""
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
        names = ("models", "ladder", "quantized", "learning_rates", "report_rates", "control_models", "dataset_sizes")
        optional = ("tiers", "factorial_widths", "factorial_depths", "factorial_dtypes")
        check_lists(self, *names, "shuffles", "seeds", *(name for name in optional if getattr(self, name)))
        if strangers := sorted(set(self.control_models) - set(self.models)):
            raise ValueError(f"control_models names {', '.join(strangers)}, which models does not list")
        if strangers := sorted(set(self.quantized) - set(self.ladder)):
            raise ValueError(f"quantized names {', '.join(strangers)}, which ladder does not list")
        return self

    @model_validator(mode="after")
    def _tiers_and_rates_fit(self) -> Self:
        if self.report_learning_rate not in self.report_rates:
            raise ValueError(f"report_rates must list the report's own rate, {self.report_learning_rate:g}")
        named = {tier.partition("+")[0].partition("*")[0] for tier in self.tiers}
        if strangers := sorted(named - set(self.models)):
            raise ValueError(f"tiers names {', '.join(strangers)}, which models does not list")
        if bool(self.tiers) != bool(self.generated_questions) or len(self.tiers) == 1:
            raise ValueError("tiers needs at least two ways to answer, and generated_questions to answer; or neither")
        if bool(self.factorial_widths) != bool(self.factorial_depths):
            raise ValueError("factorial_widths and factorial_depths must both be given, or neither")
        return self
