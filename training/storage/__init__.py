"""What is written where while a run trains, without torch: by processes beside the training process.

steps.py      a directory of step-N checkpoints: complete or invisible, hashed, pruned, never full
child.py      a process beside this one that takes and gives JSON lines
writer.py     that process for checkpoints: from the memory they were copied to onto this machine's disk
courier.py    that process for the shared directory, which may hang without anybody waiting for it
share.py      the training process's end of the courier
"""

from training.storage.share import Share
from training.storage.steps import Steps

__all__ = ["Share", "Steps"]
