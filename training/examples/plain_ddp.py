"""Data-parallel training as one writes it for torchrun, with a snapshot per epoch; nothing here knows of Minos.

    python -m torch.distributed.run --standalone --nproc_per_node=2 training/examples/plain_ddp.py --epochs 5

Started again it goes on behind its newest snapshot.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

SNAPSHOT = Path("snapshot.pt")


def data_set() -> TensorDataset:
    points = torch.linspace(-2, 2, 600).unsqueeze(1)
    return TensorDataset(points, torch.sin(3 * points))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0, help="seconds after each epoch, to have time to look on")
    options = parser.parse_args()

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    begin = 0
    if SNAPSHOT.exists():
        saved = torch.load(SNAPSHOT, map_location=device, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["epoch"]
        print(f"rank {rank}: going on from {SNAPSHOT} behind epoch {begin}", flush=True)
    model = DistributedDataParallel(network, device_ids=[local_rank] if device.type == "cuda" else None)

    data = data_set()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=20, sampler=sampler)
    for epoch in range(begin + 1, options.epochs + 1):
        sampler.set_epoch(epoch)
        total = 0.0
        for inputs, targets in loader:
            loss = torch.nn.functional.mse_loss(model(inputs.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        time.sleep(options.pause)
        if rank == 0:
            saved = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(saved, "snapshot.tmp")
            Path("snapshot.tmp").replace(SNAPSHOT)
            print(f"epoch {epoch}/{options.epochs}: loss {total / len(loader):.5f}", flush=True)
        dist.barrier()  # nobody is ahead of what is saved
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
