"""Fine-tune a causal language model on any number of processes; this file is the run from top to bottom.

By hand, on one machine (two processes; one without `-m torch.distributed.run ...`):

    python -m training.demo_data --output build/demo-data
    python -m torch.distributed.run --standalone --nproc_per_node=2 \
        -m training.finetune --config training/configs/demo.yaml [--job-dir runs/demo] [key=value ...]

Under Minos the unit on every node starts the same line with the cluster's rendezvous, a directory on the node's own
disk (--local-dir) and the data that the head has prepared (--prepared). The same command again goes on from the
newest checkpoint. `touch JOB_DIR/stop-requested` ends the run after a save; SIGTERM or Ctrl-C saves and leaves, for
the next start to go on. What became of the run stands in JOB_DIR/state.json (see state.py).
"""

from __future__ import annotations

from training import imports  # isort: skip  (before all others)

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from training import data, distributed, ledger, lifecycle, meeting, models
from training.checkpoints import Checkpoints, Share
from training.config import Config
from training.data.order import key_of, micro_batches_of, sample_indices
from training.distributed import Patience, Place
from training.evaluation import heldout_loss
from training.files import write_atomically
from training.folders import RECORDS, Folders
from training.ledger import Ledger, LedgerError
from training.lifecycle import NonFiniteError, Signal
from training.models.memory import refuse_too_large
from training.optimizer import build_optimizer, learning_rate
from training.progress import Progress, StepResult
from training.reports import Meter, NodeProbe, Profiler, Recorder
from training.results import leave_results
from training.state import JobState

imports.done()


class Run:
    """Everything one process holds during training."""

    def __init__(self, config: Config, folders: Folders, place: Place, corpus: data.Corpus, tokenizer):
        self.config, self.folders, self.place = config, folders, place
        self.corpus, self.tokenizer = corpus, tokenizer
        rows = len(corpus.train)
        self.samples = config.steps * config.global_batch if config.steps else config.epochs * rows
        self.steps = math.ceil(self.samples / config.global_batch)
        fetched = folders.as_fetched(config)
        if place.is_main:
            for line in oddities(config, rows, self.steps, place.world_size):
                print(f"warning: {line}", flush=True)
        made_of = {"weights": models.identity_of(fetched.model), "data": corpus.fingerprint}
        self.progress = Progress(fingerprint=config.identity() | made_of)
        self.unsettled: list[StepResult] = []
        self.saved: bool | None = None  # whether the last save went well; None: this start has not saved yet
        self.ended = 0.0  # when the last step of this start was over, by time.monotonic
        refuse_too_large(fetched, place.device, place.nodes.count(place.node))
        self.model = models.load_model(fetched, tokenizer, place.device, highest=corpus.highest)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(config, self.trained)
        # NCCL makes its connections with DDP's first collective, and knows no limit there: first all shall be here.
        distributed.agree(place, 0)
        self.ddp = distributed.data_parallel(models.SummedLoss(self.model, config), config)
        self.signal, self.patience, self.meter = Signal(), Patience(place, config), Meter()
        self.state = JobState(folders.job)
        self.share = Share(folders.job, folders.local, active=place.is_main)
        self.checkpoints = Checkpoints(
            folders.checkpoints, local_dir=folders.local_checkpoints, keep=config.keep, share=self.share
        )

    def open_records(self) -> None:
        """Start what writes and measures, behind the step that the run goes on from."""
        records, active, step = self.folders.records, self.place.is_main, self.progress.step
        self.share.recall(*RECORDS)
        self.recorder = Recorder(records, self.steps, active=active, resumed_at=step, title=self.folders.job.name)
        rows, seed = len(self.corpus.train), self.config.seed
        self.ledger = Ledger(records, rows=rows, seed=seed, active=active, resumed_at=step)
        self.probe = NodeProbe(self.place, self.ddp)
        self.profiler = Profiler(records, self.config.profile_steps, self.place)

    @property
    def stateful(self) -> dict[str, object]:
        """What a checkpoint holds besides `progress`."""
        return {"model": models.Trained(self.model), "optimizer": self.optimizer}

    @property
    def epoch(self) -> int:
        """The epoch that the next sample belongs to, from 1."""
        return self.progress.samples // len(self.corpus.train) + 1

    def rows(self, first: int, last: int) -> list[int]:
        """The rows of samples `first` to `last` (excluded)."""
        return sample_indices(len(self.corpus.train), self.config.seed, first, last)

    def micro_batches(self, rank: int, first: int, last: int) -> dict[int, range]:
        """The micro-batches of `rank` in the step of these samples: place in the step -> samples."""
        starts = range(first, last, self.config.micro_batch)
        mine = micro_batches_of(rank, self.place.world_size, len(starts))
        return {index: range(starts[index], min(starts[index] + self.config.micro_batch, last)) for index in mine}


def oddities(config: Config, rows: int, steps: int, ranks: int) -> Iterator[str]:
    """What works and is hardly meant."""
    if config.warmup_steps >= steps:
        yield (
            f"warmup_steps is {config.warmup_steps}, and the run has {steps} steps ({rows} rows, global_batch "
            f"{config.global_batch}): the learning rate stays below lr; write fewer, or more epochs"
        )
    parts = config.global_batch // config.micro_batch
    if ranks > parts:
        yield (
            f"{ranks - parts} of {ranks} processes have no rows: a step has {parts} micro-batches; write a larger "
            f"global_batch, or a micro_batch below {config.micro_batch}"
        )


def resume(run: Run) -> None:
    """Go on from the newest valid checkpoint that any node has, if there is one."""
    restored = run.checkpoints.restore(run.stateful)
    if restored is None:
        return
    progress = Progress(**restored.extra)
    run.progress.require_same_run(progress, run.folders.checkpoints)
    run.progress = progress
    if not run.config.steps:  # with more epochs than before a batch that was the last, and not full, lies behind us
        run.steps = progress.step + math.ceil((run.samples - progress.samples) / run.config.global_batch)
    if run.place.is_main:
        print(f"resumed from {restored.path} (step {progress.step}/{run.steps})", flush=True)


def warm_up(run: Run) -> None:
    """Two throw-away backwards. DDP regroups its buckets after the first one, which changes the order of the
    sums: a resumed run would otherwise differ from an uninterrupted one in the last bits. Nothing of them
    stays.
    """
    batch = run.corpus.train.batch(range(min(run.config.micro_batch, len(run.corpus.train))))
    devices = [run.place.device] if run.place.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for _ in range(2):
            run.ddp(*batch.inputs(run.place.device)).backward()
    run.optimizer.zero_grad(set_to_none=False)  # new ones would lie beside DDP's buckets, which are as large


def forward_backward(run: Run, first: int, last: int, counted: int) -> tuple[torch.Tensor, int]:
    """Give every rank the gradient of the mean loss over the `counted` labels of samples `first` to `last`.

    DDP averages over the ranks, so each multiplies by their number first. Ranks may have different numbers of
    micro-batches, or none: each takes part in exactly one all-reduce, with its last backward. Returns (loss sums of
    this rank's micro-batches, the ledger's sum of the rows they used).
    """
    config, place = run.config, run.place
    mine = run.micro_batches(place.rank, first, last) or {None: range(0)}
    losses, used = [], 0
    for index, samples in mine.items():
        rows = run.rows(samples.start, samples.stop)
        batch = run.corpus.train.batch(rows)
        # Dropout depends on the micro-batch's place in the run, not on the rank that computes it.
        torch.manual_seed(key_of(config.seed, run.progress.step, index))
        is_last = len(losses) == len(mine) - 1
        with contextlib.nullcontext() if is_last else run.ddp.no_sync():
            loss = run.ddp(*batch.inputs(place.device))
            # A loss that is infinite can have a finite gradient; this makes it one that the optimizer skips.
            finite = torch.where(torch.isfinite(loss.detach()), place.world_size / max(1, counted), math.nan)
            (loss * finite).backward()
        losses.append(loss.detach())
        used += ledger.sum_of(samples, rows)
    return torch.stack(losses), used


def train_step(run: Run) -> tuple[bool, bool]:
    """One optimizer step, the same on all ranks; (the job's stop is recorded, some rank was asked to leave).

    Nothing here waits for a GPU: a gradient that is not finite makes the optimizer skip the step on the device, and
    `settle` finds it. Beside the gradients the ranks exchange three whole numbers.
    """
    config, progress, corpus, began = run.config, run.progress, run.corpus.train, time.perf_counter()
    step, first = progress.step + 1, progress.samples
    last = min(first + config.global_batch, run.samples)
    rows = run.rows(first, last)
    counted = corpus.counted(rows)  # from the index of the data: every rank knows it of all of them
    losses, used = forward_backward(run, first, last, counted)
    norm = torch.nn.utils.clip_grad_norm_(run.trained, config.clip_norm or math.inf)
    run.optimizer.found_inf = (~torch.isfinite(norm)).float()
    lr = learning_rate(config, step, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=False)
    flags = torch.tensor([used, run.share.stop_requested, run.signal.received], dtype=torch.int64)
    used, stop, leave = distributed.sum_over_ranks(run.place, flags)
    if used % ledger.MODULUS != ledger.sum_of(range(first, last), rows):
        raise LedgerError(f"step {step} did not use exactly the samples {first} to {last}")
    progress.step, progress.samples = step, last
    progress.ledger_total = (progress.ledger_total + used) % ledger.MODULUS
    run.ledger.step(
        step=step,
        first=first,
        last=last,
        sum=used % ledger.MODULUS,
        total=progress.ledger_total,
        world_size=run.place.world_size,
    )
    seen, seconds = int(corpus.lengths[rows].sum()), time.perf_counter() - began
    sizes = {"first": first, "last": last, "counted": counted, "seen": seen}
    run.unsettled.append(StepResult(step=step, losses=losses, norm=norm, lr=lr, seconds=seconds, **sizes))
    return bool(stop), bool(leave)


def settle(run: Run) -> None:
    """Wait for the steps done since the last call, add them up and check them, on every rank alike.

    Errors: NonFiniteError for the first step whose loss or gradient is not a number; no checkpoint holds it.
    """
    place, progress, began = run.place, run.progress, time.perf_counter()
    table = distributed.table_of_ranks(place, torch.stack([step.figures() for step in run.unsettled]))
    waited = (time.perf_counter() - began) / len(run.unsettled)
    for step, (losses, bad, norms, seconds) in zip(run.unsettled, table.permute(1, 2, 0), strict=True):
        for rank in (bad >= 0).nonzero().flatten().tolist():
            samples = list(run.micro_batches(rank, step.first, step.last).values())[int(bad[rank]) :][:1] or [range(0)]
            rows = run.rows(samples[0].start, samples[0].stop)
            raise NonFiniteError("the loss", step.step, rank, place.nodes[rank], rows)
        for rank in (~torch.isfinite(norms)).nonzero().flatten().tolist():  # all of them, or that of a bad card
            raise NonFiniteError("the gradient", step.step, rank, place.nodes[rank])
        loss = float(losses.sum())
        run.meter.add(loss=loss, counted=step.counted, seen=step.seen, seconds=step.seconds + waited)
        run.patience.saw(float(seconds.max()) + waited)
        progress.train_seconds += step.seconds + waited
        progress.epoch_loss += loss
        progress.epoch_tokens += step.counted
    run.last_step, run.unsettled = run.unsettled[-1], []
    run.ledger.flush()


def measure_heldout(run: Run) -> None:
    """Take the held-out loss, on all ranks together."""
    progress = run.progress
    with run.patience.unhurried():  # on a slow GPU its part takes much longer than on a fast one
        progress.heldout_last = heldout_loss(run.ddp.module, run.corpus.heldout, run.config, run.place)
    if progress.heldout_first is None:
        progress.heldout_first = progress.heldout_last
    run.share.state(heldout_first=progress.heldout_first, heldout_last=progress.heldout_last)
    run.recorder.evaluation(step=progress.step, epoch=run.epoch, heldout_loss=progress.heldout_last)


def report(run: Run, epoch: int) -> None:
    """The progress line, metrics and state since the last report."""
    progress, last, figures = run.progress, run.last_step, run.meter.take()
    nodes = run.probe.of_all_nodes(figures["seconds"])
    run.recorder.step(step=progress.step, epoch=epoch, lr=last.lr, grad_norm=float(last.norm), nodes=nodes, **figures)
    mean = progress.train_seconds / progress.step
    sums = {"train_seconds": progress.train_seconds, "mean_step_seconds": mean}
    shown = {key: figures[key] for key in ("loss", "tokens_per_s")}
    run.share.state(step=progress.step, epoch=epoch, alarm=run.checkpoints.alarm, **shown, **sums)


def save(run: Run, wait: bool) -> None:
    """Save this step; `wait` until it is on the disk.

    The first save of a start gets its memory from the system, which for tens of GB may take longer than a lost machine
    has: the ranks meet there, without hurry.
    """
    meets = run.saved is None and not wait  # with `wait` they meet without hurry anyway
    with run.patience.unhurried() if meets else contextlib.nullcontext():
        extra = dataclasses.asdict(run.progress)
        run.saved = run.checkpoints.save(run.progress.step, run.stateful, epoch=run.epoch, extra=extra, wait=wait)
        if meets:
            distributed.agree(run.place, 0)


def train(run: Run) -> str:
    """Run the steps that are left.

    Returns `done`, `stopped` (the job shall end) or `leaving` (only this start ends).
    """
    config, progress, first = run.config, run.progress, run.progress.step + 1
    if progress.heldout_first is None:
        measure_heldout(run)
    while progress.step < run.steps:
        epoch = run.epoch
        stop, leave = train_step(run)
        run.profiler.step()
        step, last = progress.step, progress.step == run.steps
        ends, epoch_ends = last or stop or leave, run.epoch > epoch
        shows = step % config.log_every == 0 or step == first or ends
        measures = epoch_ends or last or (config.eval_every and step % config.eval_every == 0)
        saves = step % config.save_every == 0 or ends
        # A CPU's numbers are there; a GPU would have to finish first what it has been given.
        if shows or measures or saves or run.place.device.type == "cpu":
            settle(run)
        if shows:
            report(run, epoch)
        if measures:
            measure_heldout(run)
        if epoch_ends or last:
            mean = progress.epoch_loss / max(1, progress.epoch_tokens)
            run.recorder.epoch(step=step, epoch=epoch, whole=epoch_ends, loss=mean, heldout_loss=progress.heldout_last)
            progress.epoch_loss = progress.epoch_tokens = 0.0
        if ends:
            run.ended = time.monotonic()
            run.patience.start_over()  # the others wait until rank 0 has written the last checkpoint
        if saves:
            save(run, wait=ends)
        if ends and not last:
            recorded = run.place.is_main and run.share.look()
            return "stopped" if distributed.agree(run.place, recorded) else "leaving"
    return "done"


def finish(run: Run, outcome: str) -> None:
    """Rank 0 writes what the run leaves behind and, last, the outcome; the others wait for it."""
    config, progress, job = run.config, run.progress, run.folders.job
    meeting.unattended()  # who is ready leaves, also where there was no step left
    run.patience.start_over(2)  # rank 0 may wait for the shared directory, and export many GB
    run.probe.close()
    run.profiler.close()
    if not run.place.is_main:
        run.folders.hand_over(run.profiler.file)
    else:
        plot = run.recorder.plot(wait=True)
        facts = {"heldout_first": progress.heldout_first, "heldout_last": progress.heldout_last}
        facts["plot"] = str(job / plot.relative_to(run.folders.records))
        run.recorder.close()
        run.checkpoints.close()
        # Whoever asked this start to leave waits for it; a result is worth waiting for.
        patience = lifecycle.seconds_to_leave(run.ended) if outcome == "leaving" else config.timeout_start
        arrived = run.share.close(patience)
        if outcome == "done":
            facts["sample"] = leave_results(
                config, progress, run.place.nodes, run.model, run.tokenizer, run.corpus.heldout, job
            )
        if outcome == "leaving":
            facts["reason"] = f"left at step {progress.step} after a signal; goes on at the next start"
        if outcome != "done" and not run.saved:
            lost = (
                f"step {progress.step} could not be saved: it goes on from {run.checkpoints.newest or 'an older one'}"
            )
            facts["reason"] = lost
            print(lost, flush=True)
        if arrived or outcome != "leaving":
            run.state.progress(state="running" if outcome == "leaving" else outcome, step=progress.step, **facts)
        print(f"{outcome} at step {progress.step}/{run.steps}: {job}", flush=True)
    distributed.agree(run.place, 0)


def run_to_end(run: Run) -> str:
    """From the newest checkpoint to the end of this start; returns what `train` returns."""
    folders, place = run.folders, run.place
    if place.is_main:
        lifecycle.require_claimed(run.state, run.config, folders.prepared_for())
        write_atomically(folders.job / "config.yaml", run.config.to_yaml())
    if distributed.agree(place, place.is_main and lifecycle.stop_recorded(folders.job)):
        meeting.unattended()
        if place.is_main:
            run.state.begin(state="stopped", run_id=lifecycle.run_id())
            print(f"stopped: {folders.job / lifecycle.STOP_FILE} is there; delete it to go on", flush=True)
        return "stopped"
    resume(run)
    if place.is_main:
        run.state.begin(
            **lifecycle.begun(folders.job, run.config, place),
            step=run.progress.step,
            resumed_at=run.progress.step,
            steps=run.steps,
            epoch=run.epoch,
        )
    run.open_records()
    warm_up(run)
    run.signal.listen()
    outcome = train(run)
    finish(run, outcome)
    return outcome


def recipe(config: Config, folders: Folders) -> str:
    """All of it, in one process of the run."""
    # First of all the process group: a machine that is lost in what may take long is noticed by the others.
    place = distributed.start(config)
    fetched = folders.as_fetched(config)
    tokenizer, weights = models.load_tokenizer(fetched), models.identity_of(fetched.model)
    corpus = data.obtain(config, tokenizer, prepared=folders.packed(), local_dir=folders.data)
    facts = {"model": weights, "model's config.json": models.architecture_of(fetched.model), "data": corpus.fingerprint}
    distributed.require_same(place, facts)
    return run_to_end(Run(config, folders, place, corpus, tokenizer))


@record
def main() -> int:
    return lifecycle.run_recipe("training.finetune", __doc__.splitlines()[0], recipe)


if __name__ == "__main__":
    lifecycle.leave(main())
