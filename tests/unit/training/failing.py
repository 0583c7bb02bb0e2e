"""A torchrun program of which rank 1 ends badly, in the way that it is told; it knows nothing of Minos."""

import os
import signal
import sys
import time
from pathlib import Path

how, rank = sys.argv[1], int(os.environ["RANK"])
for step in range(30):
    print(f"rank {rank}: step {step}", flush=True)
if rank != 1:
    time.sleep(60)
if how == "raises":
    raise ValueError("row 5 has no label")
if how == "crashes":
    os.kill(os.getpid(), signal.SIGSEGV)
if how == "exits":
    sys.exit(3)
if how == "eats":  # in a control group of little memory, whose file is argv[2]
    Path(sys.argv[2]).write_text(str(os.getpid()))
    print(len(bytearray(1 << 30)))
