"""A DPO run of the real offline model with trl's own trainer and a HybridCallback, in a process that can be killed.

Run it as `python dpo_run.py FOLDER [STEP]`: it goes on from a checkpoint if one is there, and kills itself after STEP.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer

from labkit import models
from labkit.hybrid import HybridCallback, HybridConfig

STEPS = 12
CONFIG = HybridConfig(
    warmup_steps=2, full_steps=3, predict_steps=2, correct_steps=1, max_gain=1.0, predict_until=1.0,
    confidence_threshold=0.0, least_gain=0.0, divergence_threshold=1000.0,
)  # fmt: skip
PAIRS = [
    (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.", f"I would say {a + b + 1}, or so.")
    for a, b in [(1, 2), (3, 5), (4, 4), (7, 2), (6, 3), (2, 9), (8, 8), (5, 1)]
]


class Killer(TrainerCallback):
    """Ends the process the hard way after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights, _ = models.prepare("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(weights)
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    callback = HybridCallback(CONFIG)
    arguments = DPOConfig(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=1e-3,
        lr_scheduler_type="linear", save_steps=3, logging_steps=1, report_to=[], use_cpu=True, max_length=64,
        disable_tqdm=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 29]),
        callbacks=[callback, *([Killer(kill_at)] if kill_at else [])],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    adapters = {n: p.detach().contiguous() for n, p in trainer.model.named_parameters() if p.requires_grad}
    save_file(adapters, folder / "final.safetensors")
    history = callback.history.drop(columns="seconds")
    logs = [log for log in trainer.state.log_history if "loss" in log]
    record = {"history": history.to_json(orient="records"), "losses": [log["loss"] for log in logs]}
    record |= {"nominal": [log["nominal_step"] for log in logs], "real": trainer.state.global_step}
    record["rate"] = trainer.lr_scheduler.get_last_lr()[0]
    (folder / "final.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
