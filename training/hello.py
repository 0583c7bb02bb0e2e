"""A first test of a cluster: a small network learns a noisy sine on all machines and shows its fit.

    python -m torch.distributed.run --standalone --nproc_per_node=3 \
        -m training.hello --config training/configs/hello.yaml [--job-dir runs/hello] [key=value ...]

JOB_DIR/plots/hello.png holds the points, the curve behind them, what was learned, and the loss. The same command
again goes on from the newest checkpoint. It is also the shortest recipe: what one needs besides the model.
"""

from __future__ import annotations

import time

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn import GELU, Linear, Sequential
from torch.nn.parallel import DistributedDataParallel

from training import distributed, lifecycle, meeting
from training.checkpoints import Checkpoints, Share
from training.config import Config
from training.folders import Folders
from training.optimizer import learning_rate
from training.reports.fit import draw
from training.state import JobState


def curve(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x)


def recipe(config: Config, folders: Folders) -> str:
    """From the newest checkpoint to the end of this start: `done`, `stopped` (the job) or `leaving` (this start)."""
    place = distributed.start(config)
    torch.manual_seed(config.seed)  # the same points and first weights on every rank
    x = 4 * torch.rand(1000, 1) - 2
    y = curve(x) + 0.2 * torch.randn(1000, 1)
    model = Sequential(Linear(1, 64), GELU(), Linear(64, 64), GELU(), Linear(64, 1)).to(place.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    saved = {"model": model, "optimizer": optimizer}
    share = Share(folders.job, folders.local, active=place.is_main)
    checkpoints = Checkpoints(folders.checkpoints, local_dir=folders.local_checkpoints, keep=config.keep, share=share)
    step, losses, outcome = 0, [], "done"
    if restored := checkpoints.restore(saved):
        step, losses = restored.step, restored.extra["losses"]
    state, signal, patience = JobState(folders.job), lifecycle.Signal(), distributed.Patience(place, config)
    if place.is_main:
        lifecycle.require_claimed(state, config)
        print(f"begins at step {step}/{config.steps}", flush=True)
        state.begin(**lifecycle.begun(folders.job, config, place), step=step, resumed_at=step, steps=config.steps)
    distributed.agree(place, 0)  # NCCL has no time limit while it connects: first all shall be here
    ddp = DistributedDataParallel(model)
    share.look()  # a stop that was recorded before this start ends it after its first step
    signal.listen()
    while step < config.steps and outcome == "done":
        began, step = time.perf_counter(), step + 1
        torch.manual_seed(config.seed + step)
        mine = torch.randint(len(x), (config.global_batch,))[place.rank :: place.world_size]
        error = (ddp(x[mine].to(place.device)) - y[mine].to(place.device)).square().sum() / config.global_batch
        (error * place.world_size).backward()  # DDP takes the mean over the ranks, we want their sum
        optimizer.param_groups[0]["lr"] = learning_rate(config, step, config.steps)
        optimizer.step()
        optimizer.zero_grad()
        own = torch.tensor([error.item(), share.stop_requested, signal.received], dtype=torch.float64)
        loss, stop, leave = distributed.sum_over_ranks(place, own)
        losses.append(loss)
        patience.saw(time.perf_counter() - began)
        if (stop or leave) and step < config.steps:
            patience.start_over()  # the others wait until rank 0 has written the last checkpoint
            recorded = distributed.agree(place, place.is_main and share.look())
            outcome = "stopped" if recorded else "leaving"
        if step % config.log_every == 0 and place.is_main:
            print(f"step {step}/{config.steps} loss {loss:.4f}", flush=True)
            share.state(step=step, loss=loss)
        if (ends := step == config.steps or outcome != "done") or step % config.save_every == 0:
            checkpoints.save(step, saved, extra={"losses": losses}, wait=ends)
    meeting.unattended()
    patience.start_over()  # the picture and the shared directory take longer than a step
    checkpoints.close()
    share.close()
    if place.is_main:
        picture = draw(folders.job / "plots/hello.png", x, y, curve, model, losses, place.nodes)
        state.progress(state="running" if outcome == "leaving" else outcome, step=step, plot=str(picture))
        print(f"{outcome} at step {step}/{config.steps}: {picture}", flush=True)
    distributed.agree(place, 0)  # nobody leaves before rank 0 is ready
    return outcome


@record
def main() -> int:
    return lifecycle.run_recipe("training.hello", __doc__.splitlines()[0], recipe)


if __name__ == "__main__":
    lifecycle.leave(main())
