"""A training script of your own, restartable at any moment: the lines with `checkpoints` are all it takes.

    python -m torch.distributed.run --standalone --nproc_per_node=2 training/examples/own_script.py --directory runs/own

Kill it, start it again, and it ends with the weights of a run that nobody killed.
"""

import argparse

import torch
import torch.distributed as dist

from training.checkpoints import Checkpoints


def batch_of(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (32, 8) and targets (32, 1), a function of step and rank alone: what a resumed run sees is the same."""
    inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(1000 * step + rank))
    return inputs, inputs.sum(dim=1, keepdim=True).sin()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", required=True, help="the shared directory of this run")
    parser.add_argument("--local-dir", help="a directory on each machine's own disk: a slow share delays nothing then")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    state = {"model": model.module, "optimizer": optimizer}

    with Checkpoints(options.directory, local_dir=options.local_dir, keep=2) as checkpoints:
        restored = checkpoints.restore(state)  # every rank, before the first step
        first, loss_sum = (restored.step, restored.extra["loss_sum"]) if restored else (0, 0.0)
        for step in range(first + 1, options.steps + 1):
            inputs, targets = batch_of(step, dist.get_rank())
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_sum += loss.item()
            last = step == options.steps
            if step % 10 == 0 or last:
                checkpoints.save(step, state, extra={"loss_sum": loss_sum}, wait=last)

    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), f"{options.directory}/weights.pt")
        print(f"done after {options.steps - first} steps from {first}, mean loss {loss_sum / options.steps:.9f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
