"""One measurement of Hugging Face's Trainer or TRL's SFTTrainer; `training_speed.py` and `gpu.py` start it.

Both get documents that are tokenised already (JSON lines with `input_ids` and `labels`), the same model directory, the
same AdamW, and nothing to do beside training: no evaluation, saving or logging. What their defaults switch on for
memory's sake at the price of time (SFTTrainer's gradient checkpointing) or for GPUs (its bf16) is off unless asked for.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.clock import Clock

PEERS = ("trainer", "trainer-by-length", "trl", "trl-packing")


class Timing(TrainerCallback):
    """Stops the clock after each optimizer step, as `on_step_end` of both trainers allows."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_end(self, args, state, control, **_) -> None:
        self.clock.step_done()


def counting(trainer_class: type[Trainer], clock: Clock) -> type[Trainer]:
    """`trainer_class` that tells `clock` how many tokens of each micro-batch are not padding."""

    class Counting(trainer_class):
        def training_step(self, model, inputs, *arguments, **keywords):
            mask = inputs.get("attention_mask")
            clock.saw(inputs["input_ids"].numel() if mask is None else int(mask.sum()))
            return super().training_step(model, inputs, *arguments, **keywords)

    return Counting


def common_settings(options: argparse.Namespace, output_dir: str) -> dict[str, object]:
    """Settings that Trainer and SFTTrainer share; the optimizer's are those of `training.settings`."""
    return {
        "output_dir": output_dir,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.micro_batch,
        "gradient_accumulation_steps": options.accumulation,
        "learning_rate": options.lr,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "bf16": options.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": options.gradient_checkpointing,
        "torch_compile": options.compile,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }


def build_model(options: argparse.Namespace) -> torch.nn.Module:
    """fp32 weights, all of them trained; or with `lora_rank` adapters on weights of the run's precision."""
    dtype = torch.bfloat16 if options.lora_rank and options.precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="sdpa")
    if not options.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    rank = options.lora_rank
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))


def build_trainer(name: str, options: argparse.Namespace, clock: Clock, output_dir: str) -> Trainer:
    """The trainer called `name` over the documents and model of `options`."""
    from datasets import Dataset

    tokenizer = ByT5Tokenizer(extra_ids=0)  # says how to pad; the rows are tokens already
    rows = [json.loads(line) for line in options.documents.read_text(encoding="utf-8").splitlines()]
    data = Dataset.from_list(rows)
    model = build_model(options)
    settings = common_settings(options, output_dir)
    given = {"model": model, "train_dataset": data, "processing_class": tokenizer, "callbacks": [Timing(clock)]}
    if name.startswith("trl"):
        from trl import SFTConfig, SFTTrainer

        packing = {"packing": name == "trl-packing", "packing_strategy": "bfd", "max_length": options.seq_len}
        return counting(SFTTrainer, clock)(args=SFTConfig(**settings, **packing), **given)
    by_length = "group_by_length" if name == "trainer-by-length" else "random"
    return counting(Trainer, clock)(
        args=TrainingArguments(**settings, train_sampling_strategy=by_length),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        **given,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--lora-rank", type=int, default=0, help="0: all weights are trained")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    clock = Clock(warm_up=options.warm_up, steps=options.steps)
    with tempfile.TemporaryDirectory() as directory:
        trainer = build_trainer(options.name, options, clock, directory)
        result = trainer.train()
    options.output.write_text(json.dumps(clock.figures() | {"loss": result.training_loss}), encoding="utf-8")


if __name__ == "__main__":
    main()
