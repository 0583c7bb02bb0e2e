"""Why a job ended: the first failure among those of all nodes, its likely cause, and what to do; no torch.

causes.py is the table of causes, journal.py finds the failure in what one node's journal says, first.py chooses among
the nodes and words the report. On the nodes the unit minos-train-failed@ runs `python -m training.failures` whenever
an agent has ended; what it finds goes into the job's state file, which the playbooks read.
"""

from training.failures.causes import TABLE, Cause, cause_of
from training.failures.first import Failure, first_failure, is_settled, told
from training.failures.journal import Line, failure_in, lines_of

__all__ = [
    "TABLE",
    "Cause",
    "Failure",
    "Line",
    "cause_of",
    "failure_in",
    "first_failure",
    "is_settled",
    "lines_of",
    "told",
]
