"""Ask a job to stop, and wait until it has saved; prints one JSON object. Imports training's state.

Its argument is a JSON object: job_dir, patience (seconds). The answer: state (the file as it is then), asked (whether
there was anything to ask), changed.
"""

import json
import sys
import time
from pathlib import Path

from training.state import ENDED, JobState


def main():
    asked = json.loads(sys.argv[1])
    job_dir = Path(asked["job_dir"])
    job = JobState(job_dir)
    state = job.read()
    going = state.get("state") not in (None, *ENDED)
    if going:
        (job_dir / "stop-requested").touch()
    # One that only starts has nothing to save, and a script of the user's own is told by a signal.
    deadline = time.monotonic() + (0 if "script" in state else asked["patience"])
    while state.get("state") == "running" and time.monotonic() < deadline:
        time.sleep(0.25)
        state = job.read()
    print(json.dumps({"state": state, "asked": going, "changed": going}))


if __name__ == "__main__":
    main()
