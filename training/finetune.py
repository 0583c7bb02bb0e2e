"""Fine-tune a causal language model on any number of processes; this file is the run from top to bottom.

By hand, on one machine (two processes; one without `-m torch.distributed.run ...`):

    python -m training.demo_data --output build/demo-data
    python -m torch.distributed.run --standalone --nproc_per_node=2 \
        -m training.finetune --config training/configs/demo.yaml [--job-dir runs/demo] [key=value ...]

Under Minos the unit on every node starts the same line with the cluster's rendezvous. The same command again
goes on from the newest checkpoint. `touch JOB_DIR/stop-requested` ends the run after a save; SIGTERM or
Ctrl-C saves and leaves, for the next start to go on. What became of the run stands in JOB_DIR/state.json (see
state.py).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

from training import config as configuration
from training import data, distributed, lifecycle
from training.checkpoint import CheckpointError, Checkpoints, Progress
from training.config import Config
from training.distributed import Place
from training.files import write_atomically
from training.lifecycle import NonFiniteError, Stop
from training.metrics import Meter, Recorder
from training.model import SummedLoss, export, generate, load_model, load_tokenizer, padding_token
from training.optimizer import build_optimizer, learning_rate
from training.state import JobState


class Run:
    """Everything one process holds during training."""

    def __init__(self, config: Config, job_dir: Path, place: Place, corpus: data.Corpus, tokenizer):
        self.config, self.job_dir, self.place = config, job_dir, place
        self.corpus, self.tokenizer = corpus, tokenizer
        self.state, self.stop = JobState(job_dir), Stop(job_dir)
        self.checkpoints = Checkpoints(job_dir / "checkpoints", config.keep)
        rows = len(corpus.train)
        self.samples = config.steps * config.global_batch if config.steps else config.epochs * rows
        self.steps = math.ceil(self.samples / config.global_batch)
        self.progress = Progress(fingerprint=config.identity() | {"data_sha256": corpus.sha256})
        self.model = load_model(config, tokenizer).to(place.device)
        self.optimizer = build_optimizer(config, self.model)
        self.ddp = DistributedDataParallel(
            SummedLoss(self.model, config.precision), forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    @property
    def epoch(self) -> int:
        """The epoch that the next sample belongs to, from 1."""
        return self.progress.samples // len(self.corpus.train) + 1


def resume(run: Run) -> None:
    """Load the newest valid checkpoint, if there is one; rank 0 decides which, all ranks load the same."""
    newest = run.checkpoints.newest() if run.place.is_main else None
    step = int(distributed.agree(run.place, -1 if newest is None else newest))
    if step < 0:
        return
    model, optimizer, progress = run.checkpoints.load(step, run.place.device)
    for key, value in run.progress.fingerprint.items():
        before = progress.fingerprint.get(key)
        if before != value:
            raise CheckpointError(
                f"{run.checkpoints.path(step)}: was made with {key} {before!r}, now it is {value!r}; "
                "put it back or use another job directory"
            )
    run.model.load_state_dict(model)
    run.optimizer.load_state_dict(optimizer)
    run.progress = progress
    if run.place.is_main:
        print(f"resumed from {run.checkpoints.path(step)} (step {step}/{run.steps})", flush=True)


def warm_up(run: Run) -> None:
    """Two throw-away backwards. DDP regroups its buckets after the first one, which changes the order of the
    sums: a resumed run would otherwise differ from an uninterrupted one in the last bits. Nothing of them
    stays.
    """
    tokens, labels, _ = data.collate(run.corpus.train[: run.config.micro_batch], padding_token(run.tokenizer))
    devices = [run.place.device] if run.place.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for _ in range(2):
            run.ddp(tokens.to(run.place.device), labels.to(run.place.device)).backward()
    run.optimizer.zero_grad()


def forward_backward(run: Run) -> tuple[torch.Tensor, int, int]:
    """Sum the loss and its gradient over this rank's micro-batches of the next step.

    Returns (loss sum, tokens that count in it, all tokens without padding). Afterwards every rank holds the
    gradient of the sum over ALL ranks: DDP averages, so the loss is multiplied by the number of ranks first.
    Ranks may have different numbers of micro-batches, or none: each takes part in exactly one all-reduce,
    with its last backward.
    """
    config, place, first = run.config, run.place, run.progress.samples
    end, size = min(first + config.global_batch, run.samples), config.micro_batch
    samples = data.sample_indices(len(run.corpus.train), config.seed, first, end)
    micro_batches = [samples[at : at + size] for at in range(0, len(samples), size)]
    mine = data.micro_batches_of(place.rank, place.world_size, len(micro_batches))
    loss_sum, counted, seen = torch.zeros((), dtype=torch.float64, device=place.device), 0, 0
    for index in mine or [None]:
        rows = [] if index is None else [run.corpus.train[sample] for sample in micro_batches[index]]
        tokens, labels, valid = data.collate(rows, padding_token(run.tokenizer))
        # Dropout depends on the micro-batch's place in the run, not on the rank that computes it.
        torch.manual_seed(data.key_of(config.seed, run.progress.step, index))
        is_last = index is None or index == mine[-1]
        with contextlib.nullcontext() if is_last else run.ddp.no_sync():
            loss = run.ddp(tokens.to(place.device), labels.to(place.device))
            (loss * place.world_size).backward()
        loss_sum += loss.detach()
        counted += valid
        seen += sum(len(row.tokens) for row in rows)
    return loss_sum, counted, seen


def train_step(run: Run) -> dict[str, float]:
    """One optimizer step, the same on all ranks; returns the step's sums over all ranks.

    The only number exchange besides the gradients is one small all-reduce: loss, token counts, stop flags and
    one flag per rank for a loss that is not finite.
    """
    place, step = run.place, run.progress.step + 1
    loss_sum, counted, seen = forward_backward(run)
    recorded = place.is_main and run.stop.recorded()
    flags = [0.0] * place.world_size
    message = torch.tensor([0.0, counted, seen, recorded, run.stop.signalled, *flags], dtype=torch.float64)
    message = message.to(place.device)
    message[0] = loss_sum
    message[5 + place.rank] = ~torch.isfinite(loss_sum)
    loss, counted, seen, recorded, signalled, *flags = distributed.sum_over_ranks(message)
    if any(flags):
        raise NonFiniteError("the loss", step, [rank for rank, flag in enumerate(flags) if flag], place.nodes)
    gradients = [parameter.grad for parameter in run.model.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, 1 / max(1, counted))
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.clip_norm or math.inf)
    if not torch.isfinite(norm):
        raise NonFiniteError("the gradient", step, list(range(place.world_size)), place.nodes)
    lr = learning_rate(run.config, step, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.progress.step = step
    run.progress.samples = min(run.progress.samples + run.config.global_batch, run.samples)
    sums = {"loss": loss, "counted": counted, "seen": seen}
    return sums | {"lr": lr, "grad_norm": float(norm), "recorded": recorded, "signalled": signalled}


@torch.no_grad()
def evaluate(run: Run) -> float:
    """Mean loss over all held-out tokens that count, in nats; the rows are divided over the ranks."""
    rows = sorted(run.corpus.heldout, key=lambda row: len(row.tokens))  # like lengths: little padding
    size, place = run.config.micro_batch, run.place
    batches = [rows[at : at + size] for at in range(0, len(rows), size)][place.rank :: place.world_size]
    sums = torch.zeros(2, dtype=torch.float64, device=place.device)
    run.model.eval()
    for batch in batches:
        tokens, labels, valid = data.collate(batch, padding_token(run.tokenizer))
        sums[0] += run.ddp.module(tokens.to(place.device), labels.to(place.device))
        sums[1] += valid
    run.model.train()
    loss, counted = distributed.sum_over_ranks(sums)
    return loss / max(1, counted)


def measure_heldout(run: Run, recorder: Recorder) -> None:
    loss = evaluate(run)
    run.progress.heldout_last = loss
    if run.progress.heldout_first is None:
        run.progress.heldout_first = loss
    if run.place.is_main:
        run.state.progress(heldout_first=run.progress.heldout_first, heldout_last=loss)
    recorder.evaluation(step=run.progress.step, epoch=run.epoch, heldout_loss=loss)


def save(run: Run) -> None:
    """Rank 0 writes a checkpoint; the others go on and wait in the next step's all-reduce."""
    if run.place.is_main:
        path = run.checkpoints.save(run.progress.step, run.model.state_dict(), run.optimizer.state_dict(), run.progress)
        run.state.progress(checkpoint=str(path), step=run.progress.step)


def report(run: Run, recorder: Recorder, meter: Meter, epoch: int, sums: dict[str, float]) -> None:
    """The progress line, metrics and state since the last report."""
    progress, figures = run.progress, meter.take()
    recorder.step(step=progress.step, epoch=epoch, lr=sums["lr"], grad_norm=sums["grad_norm"], **figures)
    if run.place.is_main:
        mean = progress.train_seconds / progress.step
        run.state.progress(
            step=progress.step,
            epoch=epoch,
            loss=figures["loss"],
            tokens_per_s=figures["tokens_per_s"],
            train_seconds=progress.train_seconds,
            mean_step_seconds=mean,
        )


def train(run: Run, recorder: Recorder) -> str:
    """Run the steps that are left.

    Returns `done`, `stopped` (the job shall end) or `leaving` (only this start ends).
    """
    config, progress, meter, first = run.config, run.progress, Meter(), run.progress.step + 1
    if progress.heldout_first is None:
        measure_heldout(run, recorder)
    while progress.step < run.steps:
        epoch, began = run.epoch, time.perf_counter()
        sums = train_step(run)
        seconds = time.perf_counter() - began
        meter.add(sums, seconds)
        progress.train_seconds += seconds
        progress.epoch_loss += sums["loss"]
        progress.epoch_tokens += sums["counted"]
        step, last = progress.step, progress.step == run.steps
        asked_to_end = bool(sums["recorded"] or sums["signalled"])
        if step == first:
            distributed.set_timeout(config.timeout_step)
        if step % config.log_every == 0 or step == first or last or asked_to_end:
            report(run, recorder, meter, epoch, sums)
        epoch_ends = run.epoch > epoch
        if epoch_ends or last or (config.eval_every and step % config.eval_every == 0):
            measure_heldout(run, recorder)
        if epoch_ends or last:
            loss, heldout = progress.epoch_loss / max(1, progress.epoch_tokens), progress.heldout_last
            recorder.epoch(step=step, epoch=epoch, whole=epoch_ends, loss=loss, heldout_loss=heldout)
            progress.epoch_loss = progress.epoch_tokens = 0.0
        if last or asked_to_end or step % config.save_every == 0:
            save(run)
        if asked_to_end and not last:
            recorded = distributed.agree(run.place, run.place.is_main and run.stop.recorded(now=True))
            return "stopped" if recorded else "leaving"
    return "done"


def finish(run: Run, recorder: Recorder, outcome: str) -> None:
    """Rank 0 writes what the run leaves behind and, last, the outcome; the others wait for it."""
    progress = run.progress
    if run.place.is_main:
        recorder.plot()
        facts = {
            "plot": str(recorder.plot_file),
            "heldout_first": progress.heldout_first,
            "heldout_last": progress.heldout_last,
        }
        if outcome == "done":
            export(run.model, run.tokenizer, run.job_dir / "model")
            prompt, length = run.corpus.heldout[0].prompt(), run.config.sample_tokens
            facts["sample"] = generate(run.model, run.tokenizer, prompt, length) if length else ""
            write_atomically(run.job_dir / "sample.txt", facts["sample"] + "\n")
            mean = progress.train_seconds / progress.step
            print(
                f"total {progress.train_seconds:.1f} s in {progress.step} steps, mean step {mean:.4f} s",
                flush=True,
            )
            print(f"held-out loss {progress.heldout_first:.4f} -> {progress.heldout_last:.4f}", flush=True)
            print(f"sample:\n{facts['sample']}", flush=True)
        if outcome == "leaving":
            facts["reason"] = f"left at step {progress.step} after a signal; goes on at the next start"
        run.state.progress(state="running" if outcome == "leaving" else outcome, step=progress.step, **facts)
        print(f"{outcome} at step {progress.step}/{run.steps}: {run.job_dir}", flush=True)
    recorder.close()
    distributed.agree(run.place, 0)


def run_to_end(run: Run) -> str:
    """From the newest checkpoint to the end of this start; returns what `train` returns."""
    if run.place.is_main:
        write_atomically(run.job_dir / "config.yaml", run.config.to_yaml())
    if distributed.agree(run.place, run.place.is_main and run.stop.recorded(now=True)):
        if run.place.is_main:
            run.state.begin(state="stopped", run_id=lifecycle.run_id())
            print(f"stopped: {run.job_dir / lifecycle.STOP_FILE} is there; delete it to go on", flush=True)
        return "stopped"
    resume(run)
    if run.place.is_main:
        run.state.begin(
            job=run.job_dir.name,
            state="running",
            run_id=lifecycle.run_id(),
            config_sha256=run.config.sha256(),
            step=run.progress.step,
            steps=run.steps,
            epoch=run.epoch,
            world_size=run.place.world_size,
            nodes=list(dict.fromkeys(run.place.nodes)),
            backend=run.place.backend,
        )
    recorder = Recorder(run.job_dir, run.steps, active=run.place.is_main, resumed_at=run.progress.step)
    warm_up(run)
    run.stop.listen()
    outcome = train(run, recorder)
    finish(run, recorder, outcome)
    return outcome


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.finetune", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="YAML file, see training/configs")
    parser.add_argument("--job-dir", type=Path, help="all files of the run; default runs/<config's name>")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the file")
    options = parser.parse_intermixed_args()
    options.job_dir = (options.job_dir or Path("runs") / options.config.stem).resolve()
    return options


@record
def main() -> None:
    options = parse_arguments()
    state = JobState(options.job_dir)
    with lifecycle.failures_recorded(state):
        if lifecycle.ended_already(state):
            return
        config = configuration.load(options.config, options.overrides)
        tokenizer = load_tokenizer(config)
        corpus = data.load(config, tokenizer)  # before the process group: nobody waits with a clock running
        place = distributed.start(config, {"config": config.sha256(), "data": corpus.sha256})
        outcome = run_to_end(Run(config, options.job_dir, place, corpus, tokenizer))
        distributed.end()
    if outcome == "leaving":
        sys.exit(lifecycle.LEAVING)


if __name__ == "__main__":
    main()
