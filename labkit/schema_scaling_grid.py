"""The parameters of report 004: a d_model x n_layers grid, its training and its law."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from labkit.schema import Layer, Params, check_lists


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
        return self
