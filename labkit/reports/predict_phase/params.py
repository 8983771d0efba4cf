"""The parameters of report 003: ways to train compared over budgets and seeds, and its side questions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from labkit.workflow.schema import Layer, Params, check_lists

TaskName = Literal["text-0.1m", "text-1m", "text-1m-fused", "text-10m", "gpt2"]
"""GPT-2-shaped models that labkit.reports.predict_phase.train builds by name."""
AdaptedName = Literal["smollm2-135m-lora"]
"""Pretrained models with adapters that labkit.reports.predict_phase.tasks loads by name."""
ArmName = Literal[
    "adamw",
    "adamw-tail",
    "lookahead",
    "outer-nesterov",
    "ema-nesterov",
    "block-trend",
    "modal",
    "learned",
    "coasting",
    "last-update",
    "frozen",
    "random",
    "rejecting",
    "muon",
    "muon-ema-nesterov",
    "muon-block-trend",
    "adamw-x1.5",
    "adamw-x2",
    "adamw-slow",
    "last-update-slow",
    "adamw-cosine",
    "constant-ema",
    "constant-rre",
    "wsd",
    "schedule-free",
    "ademamix",
    "muon-constant-ema",
    "muon-constant-rre",
    "block-trend-tuned",
    "noise-matched",
]
"""Ways to train that labkit.reports.predict_phase.arms describes."""
READ_WITHIN = frozenset(
    {"constant-ema", "constant-rre", "wsd", "schedule-free", "muon-constant-ema", "muon-constant-rre"}
)
"""Those of which one run serves all budgets: it is read at every fifth of its steps."""
SettingName = Literal["rate", "horizon", "confidence", "interval", "memory"]
"""Settings that labkit.reports.predict_phase.arms varies one at a time."""


class PredictPhase(Params):
    """Report 003: skip backward passes by predicting updates, judged by the time to an equal loss."""

    report = "predict_phase"

    task: Annotated[TaskName, Layer.SCOPE]
    """Model that all arms train from scratch."""
    corpus: Annotated[Literal["wikitext-2", "wiki-sample"], Layer.SCOPE]
    """Text it is trained and scored on."""
    vocab_size: Annotated[PositiveInt, Layer.SCOPE]
    """Tokens of the byte-level BPE trained on the training split."""
    context: Annotated[PositiveInt, Layer.SCOPE]
    """Tokens of a window."""
    batch_size: Annotated[PositiveInt, Layer.SCOPE]
    """Windows of a step."""
    steps: Annotated[PositiveInt, Layer.SCOPE]
    """Nominal steps of the longest schedule."""
    budgets: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Schedules as shares of it, each completed; the last is 1."""
    arms: Annotated[list[ArmName], Layer.SCOPE]
    """Ways to train that are compared; the baseline adamw is one."""
    learning_rates: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Peak rates tried for every arm; extended until the best one lies inside."""
    seeds: Annotated[list[int], Layer.SCOPE]
    """Paired seeds of the comparison; rates are tuned on another."""
    held_out_windows: Annotated[PositiveInt, Layer.SCOPE]
    """Windows of held-out text scored after each run."""
    finetune_task: Annotated[AdaptedName, Layer.SCOPE]
    """Pretrained model whose adapters are trained on the same text, in a comparison of its own."""
    finetune_context: Annotated[PositiveInt, Layer.SCOPE]
    """Tokens of a window there."""
    finetune_batch_size: Annotated[PositiveInt, Layer.SCOPE]
    """Windows of a step there."""
    finetune_steps: Annotated[int, Field(ge=0), Layer.SCOPE]
    """Nominal steps of the longest schedule there; 0 leaves that comparison out."""
    finetune_budgets: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Schedules as shares of it; the last is 1."""
    finetune_arms: Annotated[list[ArmName], Layer.SCOPE]
    """Ways to train that are compared there."""
    finetune_learning_rates: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Peak rates tried there."""
    finetune_seeds: Annotated[list[int], Layer.SCOPE]
    """Paired seeds there."""
    finetune_held_out_windows: Annotated[PositiveInt, Layer.SCOPE]
    """Windows of held-out text scored there."""
    cnn_steps: Annotated[int, Field(ge=0), Layer.SCOPE]
    """Nominal steps of the small network on digits, with the budgets from scratch; 0 leaves it out."""
    cnn_arms: Annotated[list[ArmName], Layer.SCOPE]
    """Ways to train that are compared there."""
    cnn_batch_size: Annotated[PositiveInt, Layer.SCOPE]
    """Digits of a step there."""
    settings: Annotated[list[SettingName], Layer.SCOPE]
    """What is varied one at a time, from scratch and at the longest budget; an empty list leaves that out."""
    noise_batch_sizes: Annotated[list[PositiveInt], Layer.SCOPE]
    """Windows of a step at which jumps are held against the noise of the gradient; an empty list leaves that out."""
    side_seeds: Annotated[list[int], Layer.SCOPE]
    """Paired seeds of these two, and of the side arms where costs are measured apart."""
    cost_rounds: Annotated[int | None, Field(ge=2), Layer.SCOPE] = None
    """Rounds in which the costs of steps are measured apart from the runs, which then may train in the background of
    other work: the deciding protocol, with rates for every budget and n-gram floors. None where a run's time counts."""
    original_task: Annotated[TaskName, Layer.SCOPE]
    """Model of the report's own protocol on random tokens."""
    original_vocab_size: Annotated[PositiveInt, Layer.SCOPE]
    """Its vocabulary."""
    original_seeds: Annotated[list[int], Field(min_length=1), Layer.SCOPE]
    """Seeds of its runs with the report's initialisation; one has no interval, and decides nothing."""
    memory_steps: Annotated[PositiveInt, Layer.SCOPE]
    """Predicted steps over which memory is followed."""
    original_steps: Annotated[PositiveInt, Layer.SCIENCE]
    """Steps of the report's run."""
    original_batch_size: Annotated[PositiveInt, Layer.SCIENCE]
    """Samples of its steps."""
    original_context: Annotated[PositiveInt, Layer.SCIENCE]
    """Tokens of its samples."""
    original_learning_rate: Annotated[PositiveFloat, Layer.SCIENCE]
    """Adam's rate in the report."""
    weight_decay: Annotated[float, Field(ge=0), Layer.SCIENCE]
    """Decoupled decay of matrices in our runs."""
    beta2: Annotated[float, Field(gt=0, lt=1), Layer.SCIENCE]
    """AdamW's second-moment decay in our runs."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1), Layer.SCIENCE]
    """Share of a schedule in which the rate rises; it falls linearly to 0 after."""
    grad_clip: Annotated[PositiveFloat, Layer.SCIENCE]
    """Largest norm of the gradient."""
    tuning_seed: Annotated[int, Layer.SCIENCE]
    """Seed that rates are tuned on, and that no comparison uses."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for prefix in ("", "finetune_"):
            self._check_comparison(prefix)
        if not set(self.side_seeds) <= set(self.seeds):
            raise ValueError(
                f"side_seeds must be among seeds {self.seeds}, whose baseline they need; got {self.side_seeds}"
            )
        if "adamw" not in self.cnn_arms:
            raise ValueError(f"cnn_arms must hold the baseline adamw; got {self.cnn_arms}")
        if self.cost_rounds and not self.smoke and (self.settings or self.noise_batch_sizes):
            raise ValueError(
                "with cost_rounds no run's own time may enter a speed: settings and noise_batch_sizes, whose speeds "
                f"are made of it, must be empty; got {self.settings} and {self.noise_batch_sizes}"
            )
        return self

    def _check_comparison(self, prefix: str) -> None:
        """Refuse lists that are empty or repeat, budgets that do not end with 1, no baseline, the tuning seed."""
        own = {name: getattr(self, prefix + name) for name in ("budgets", "arms", "learning_rates", "seeds")}
        check_lists(self, *(prefix + name for name in own))
        budgets, arms, seeds = own["budgets"], own["arms"], own["seeds"]
        if budgets != sorted(budgets) or budgets[-1] != 1:
            raise ValueError(f"{prefix}budgets must grow and end with 1; got {budgets}")
        if READ_WITHIN & {*arms} and not {round(100 * share) for share in budgets} <= {20, 40, 60, 80, 100}:
            raise ValueError(
                f"{prefix}arms that are read within a run need {prefix}budgets of 0.2, 0.4, ...; got {budgets}"
            )
        if "adamw" not in arms:
            raise ValueError(f"{prefix}arms must hold the baseline adamw; got {arms}")
        if self.tuning_seed in seeds:
            why = "rates would be judged where they were chosen"
            raise ValueError(f"{prefix}seeds holds tuning_seed {self.tuning_seed}: {why}")
