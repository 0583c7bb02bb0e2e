"""Useful tokens per second of our loop beside Hugging Face's Trainer and TRL's SFTTrainer, on one CPU thread.

    python -m benchmarks.training_speed plain|ragged [--rounds 5] [--pairs FILE]

`plain`: text in rows of equal length, nothing to pad. `ragged`: instruction pairs of very different lengths. All
candidates start from the same weights and train on the same documents with the same number of tokens per step; one
measurement is a process of its own, and candidates alternate (measure.py). Tokens of padding are not useful.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from benchmarks.measure import Figures, interleave, median
from benchmarks.workload import TINY, TOKENIZER, Shape, make_model, make_pairs, make_text, write_config, write_documents

PAIRS = Path("build/demo-data/train.jsonl")
DOCUMENTS_PER_ROW = 8 / 3  # what of the demo's pairs goes into a packed row of 512 tokens, on average


@dataclasses.dataclass(kw_only=True, frozen=True)
class Sizes:
    """A step is `rows` packed rows of `seq_len` tokens, `micro_batch` of them per forward pass."""

    seq_len: int = 512
    rows: int = 12
    micro_batch: int = 6
    steps: int = 14
    warm_up: int = 2


def candidates_of(case: str, sizes: Sizes, directory: Path) -> dict[str, list[str]]:
    """Label -> command line of each measurement of `case`; model, config and documents are in `directory`."""

    def ours(micro_batch: int) -> list[str]:
        settings = [f"micro_batch={micro_batch}", f"steps={sizes.steps}"]
        command = ["-m", "benchmarks.ours", "--config", str(directory / "config.yaml")]
        return [*command, "--job-dir", "{scratch}", *common, *settings]

    def peer(name: str, micro_batch: int, per_step: int) -> list[str]:
        sizing = ["--micro-batch", str(micro_batch), "--accumulation", str(per_step // micro_batch)]
        inputs = ["--documents", str(directory / "documents.jsonl"), "--model", str(directory / "model")]
        return ["-m", "benchmarks.peers", name, *inputs, *common, *sizing, "--seq-len", str(sizes.seq_len)]

    common = ["--steps", str(sizes.steps), "--warm-up", str(sizes.warm_up)]
    rows, size = sizes.rows, sizes.micro_batch
    if case == "plain":
        return {
            f"ours, {size} rows": ours(size),
            f"Trainer, {size} rows": peer("trainer", size, rows),
            f"SFTTrainer, {size} rows": peer("trl", size, rows),
        }
    documents = round(rows * DOCUMENTS_PER_ROW)  # of a step
    many = documents * size // rows  # of a forward pass with as many useful tokens as ours
    few = max(1, many // 4)
    return {
        f"ours, {size} packed rows": ours(size),
        "ours, 1 packed row": ours(1),
        f"SFTTrainer packing, {size} packed rows": peer("trl-packing", size, rows),
        "SFTTrainer packing, 1 packed row": peer("trl-packing", 1, rows),
        f"SFTTrainer padding, {many} documents": peer("trl", many, documents),
        f"Trainer padding, {many} documents": peer("trainer", many, documents),
        f"Trainer padding, {few} documents": peer("trainer", few, documents),
        f"Trainer by length, {many} documents": peer("trainer-by-length", many, documents),
        "Trainer, 1 document (no padding)": peer("trainer", 1, documents),
    }


def prepare(case: str, sizes: Sizes, shape: Shape, pairs: Path, directory: Path) -> None:
    """Weights, data and config of `case`, enough for all steps, in `directory`."""
    make_model(shape, sizes.seq_len, directory / "model")
    rows = sizes.rows * sizes.steps
    if case == "plain":
        source = make_text(pairs, round(rows * sizes.seq_len * 1.2), directory)  # a tenth is held out
    else:
        source = make_pairs(pairs, round(rows * DOCUMENTS_PER_ROW * 1.2), directory)
    config = write_config(
        directory / "config.yaml",
        model=str(directory / "model"),
        tokenizer=TOKENIZER,
        data_train=str(source),
        prompt_template="# {instruction}\n",
        seq_len=sizes.seq_len,
        global_batch=sizes.rows,
        micro_batch=sizes.micro_batch,
    )
    write_documents(config, directory)


def table(figures: dict[str, list[Figures]]) -> str:
    """A Markdown table; the first candidate is what the others are compared with."""
    lines = [
        "| candidate | tokens/s | tokens/CPU s | tokens a step | loss | ours / this, CPU |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(figures.values()))
    for name, found in figures.items():
        # Of each round its own ratio: what else the machine did then bears on both alike.
        ratios = [{"ratio": a["tokens_per_cpu_s"] / b["tokens_per_cpu_s"]} for a, b in zip(first, found, strict=True)]
        speeds = f"{median(found, 'tokens_per_s'):,.0f} | {median(found, 'tokens_per_cpu_s'):,.0f}"
        size = f"{median(found, 'tokens_per_step'):,.0f} | {median(found, 'loss'):.3f}"
        lines.append(f"| {name} | {speeds} | {size} | {median(ratios, 'ratio'):.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("plain", "ragged"))
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each candidate")
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="the demo's training file")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="candidates whose label begins so")
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    options = parser.parse_args(arguments)
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)})
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        prepare(options.case, sizes, TINY, options.pairs, directory)
        candidates = candidates_of(options.case, sizes, directory)
        wanted = {name: it for name, it in candidates.items() if name.startswith(tuple(options.only))}
        print(table(interleave(wanted, options.rounds)))


if __name__ == "__main__":
    main()
