"""Tiny specs that show whether the cell functions of report 000 still do what their versions promise."""

from __future__ import annotations

from typing import Any

from labkit.cell import CellFunction
from labkit.decoding.ladder import Rung, measure_rung
from labkit.decoding.loading import LoadSpec, measure_load
from labkit.decoding.quantize import QuantizedRung, measure_quantized
from labkit.dpo.arm import DpoArm, train_arm
from labkit.reports.size_inertia.balanced import BalanceSpec, measure_balance
from labkit.reports.size_inertia.coverage import CoverageSpec, measure_coverage
from labkit.reports.size_inertia.fidelity import FidelitySpec, measure_fidelity
from labkit.reports.size_inertia.judged import BalancedArm, ReferenceSpec, measure_reference, train_balanced
from labkit.reports.size_inertia.matrix import MatrixSpec, answer_questions
from labkit.reports.size_inertia.surface import SurfaceSpec, measure_surface
from labkit.reports.size_inertia.tiers import BlockSpec, answer_block
from labkit.reports.size_inertia.tiers import measure_deciding as measure_tier_deciding
from labkit.routing.deciding import DecidingSpec, measure_deciding

_SIZES = (
    *(("hidden_size", 32), ("num_hidden_layers", 2), ("num_attention_heads", 4), ("num_key_value_heads", 2)),
    *(("intermediate_size", 64), ("vocab_size", 112)),
)


def _rung(shape: str, *overrides: tuple[str, Any], **changes: Any) -> Rung:
    counts = {"prompt_tokens": 5, "new_tokens": 4, "repeats": 1, "batch": 2, "length": 9, "seed": 3}
    own = {"name": f"tiny {shape}", "shape": shape, "overrides": _SIZES + overrides, "dtype": "float32"}
    return Rung(**own | counts | changes)


def _quantized(weights: str, width: int = 32, **changes: Any) -> QuantizedRung:
    widths = (("hidden_size", width), ("intermediate_size", 3 * width))
    return QuantizedRung(rung=_rung("qwen2.5-0.5b", *widths, train=False, **changes), weights=weights)


# Labels shuffled, a rest to validate on, micro-batches accumulated, a schedule that is cut short, a chat template;
# then template negatives in half precision, as raw texts of which some are cut, with a target that matches nothing, on
# a model whose output layer has a bias.
_SHUFFLED = DpoArm(
    name="shuffled",
    model="tiny-qwen2",
    variant="shuffled",
    label_seed=1,
    n_pairs=112,
    seed=2,
    steps=3,
    schedule_steps=5,
    batch_pairs=4,
    micro_batch=2,
    learning_rate=0.02,
    warmup_steps=1,
    schedule="cosine",
    lora_rank=3,
    lora_alpha=9,
    max_length=640,
    eval_pairs=3,
    validate_on_rest=True,
    checkpoint_every=2,
)
_TEMPLATE = DpoArm(
    name="template",
    model="tiny-phi2",
    variant="template",
    n_pairs=7,
    steps=2,
    batch_pairs=3,
    micro_batch=3,
    beta=0.5,
    learning_rate=0.05,
    targets=("q_proj", "dense", "o_proj"),
    allow_unmatched=("o_proj",),
    max_length=300,
    dtype="bfloat16",
    eval_pairs=4,
)
_ASKED = (
    *("arithmetic-01", "arithmetic-05", "code-01", "culture-02", "extraction-16", "geography-01", "geography-14"),
    *("instruction-04", "instruction-12", "language-15", "reasoning-13", "science-08", "science-14"),
)
# All shapes at their size: everywhere else their values are replaced by smaller ones.
_COVERED = {
    ("qwen2.5-0.5b", "qwen2.5-7b", "phi-2", "smollm2-135m", "gemma-3-270m", "bitnet-2b"): ("q_proj", "o_proj"),
    ("phi-4",): ("qkv_proj", "nothing"),
    ("gpt2",): ("c_attn", "c_fc"),
}
GOLDENS: dict[CellFunction, tuple[Any, ...]] = {
    measure_coverage: tuple(
        CoverageSpec(model=name, targets=targets, rank=3) for names, targets in _COVERED.items() for name in names
    ),
    measure_rung: (
        # A vocabulary of more values than one generator draws.
        _rung("qwen2.5-0.5b", ("tie_word_embeddings", False), ("vocab_size", 40_000)),
        _rung("phi-2", ("num_attention_heads", 2), repeats=2, warmup=0),
        _rung("gemma-3-270m", ("head_dim", 8), train=False),
    ),
    measure_quantized: (
        _quantized("float32"),
        _quantized("int8"),
        # Groups of weights by what divides a row; the last width is divided by none, which is refused.
        *(_quantized("int4", width, dtype="bfloat16") for width in (32, 64, 128, 48)),
    ),
    measure_fidelity: (
        FidelitySpec(model="tiny-llama", weights="int8", dtype="float32", n_tokens=70, threads=1),
        FidelitySpec(model="tiny-qwen2", weights="int4", dtype="bfloat16", n_tokens=40, threads=1),
    ),
    measure_load: (LoadSpec(model="tiny-llama", dtype="float32", repeats=1),),
    answer_questions: (
        MatrixSpec(model="tiny-qwen2", dtype="float32", n_questions=5, max_new_tokens=6, threads=1, seed=1),
        MatrixSpec(model="tiny-parrot", dtype="float32", n_questions=40, max_new_tokens=6, threads=1, seed=223),
        MatrixSpec(model="tiny-mynah", dtype="float32", n_questions=40, max_new_tokens=6, threads=1, seed=31),
    ),
    measure_deciding: (
        DecidingSpec(queries=_ASKED, gains=(0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 1)),
        DecidingSpec(queries=_ASKED[:6], gains=(0, 1, 0, 0, 1, 0)),
        DecidingSpec(queries=_ASKED[:4], gains=(0, 1, 0, 0)),
    ),
    answer_block: (
        BlockSpec(model="tiny-qwen2", dtype="float32", notes=2, samples=3, first=5, n_questions=3, threads=1),
        BlockSpec(model="tiny-parrot", dtype="float32", n_questions=40, max_new_tokens=6, threads=1),
    ),
    measure_tier_deciding: (
        DecidingSpec(queries=tuple(f"capital-{i:03}" for i in range(1, 9)), gains=(0, 1, 1, 0, 0, 1, 0, 1)),
        # Some of these go to the dearer tier by the report's words.
        DecidingSpec(
            queries=(*(f"{kind}-{i:03}" for i in (5, 19, 33) for kind in ("purpose", "meaning", "capital")),),
            gains=(1, 0, 1, 0, 1, 0, 0, 1, 1),
        ),
    ),
    measure_surface: (SurfaceSpec(n_pairs=10, seed=1),),
    train_arm: (_SHUFFLED, _TEMPLATE),
    train_balanced: (BalancedArm.of(_TEMPLATE, 2),),
    measure_reference: (
        ReferenceSpec(model="tiny-qwen2", balanced_pairs=3, max_length=640),
        ReferenceSpec(model="tiny-phi2", dtype="bfloat16", max_length=300),
    ),
    measure_balance: (BalanceSpec(n_pairs=108),),
}
