"""The parameters of report 004: a d_model x n_layers grid, its training and its law."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from labkit.workflow.schema import Layer, Params, check_lists


class ScalingGrid(Params):
    """Report 004: train a d_model x n_layers grid of language models and fit a law through it."""

    report = "scaling_grid"

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
    training_dtype: Annotated[Literal["machine", "float32", "bfloat16"], Layer.SCOPE]
    """Compute type of matrix products while training; `machine` takes that of the profile."""
    scorings: Annotated[PositiveInt, Layer.SCOPE]
    """Times each model of the grid is scored while it trains; as many as epochs puts each epoch's loss on record."""
    isoflop_budgets: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Training FLOPs at which models of several sizes are compared; empty leaves the comparison out."""
    isoflop_vocab_size: Annotated[PositiveInt, Layer.SCOPE]
    """Tokens of its BPE."""
    isoflop_widths: Annotated[list[PositiveInt], Layer.SCOPE]
    """Widths its models are made of, with as many layers as a size needs."""
    isoflop_sizes: Annotated[PositiveInt, Layer.SCOPE]
    """Sizes at each budget, around that of 20 tokens a parameter and a factor of eight apart."""
    isoflop_epochs: Annotated[PositiveFloat, Layer.SCOPE]
    """Most passes over the text of the smallest model of a budget; a larger model makes fewer."""
    isoflop_seeds: Annotated[list[int], Layer.SCOPE]
    """Seeds of each of its cells; all budgets of one seed come before the next seed."""
    isoflop_learning_rates: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Rates tried per mixer and width; a parabola through the best three gives the one used."""
    potential_starts: Annotated[list[PositiveFloat], Layer.SCOPE]
    """Factors on the published start of ResNet-BK's potential; the best at the smallest budget is used."""
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
        check_lists(self, "d_model", "n_layers", "seeds", "learning_rates", "mixers")
        if self.isoflop_budgets:
            names = ("budgets", "widths", "seeds", "learning_rates")
            check_lists(self, *(f"isoflop_{name}" for name in names), "potential_starts")
        return self
