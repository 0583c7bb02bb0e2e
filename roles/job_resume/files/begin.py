"""Write down that a job starts again; prints one JSON object. Imports training's state.

Its argument is a JSON object: job_dir, run_id, from_run_id (what the state said when it was looked at). The answer:
begun (false where somebody else has started it meanwhile), state (as it is then), changed.
"""

import datetime
import json
import sys
from pathlib import Path

from training.state import JobState


def main():
    asked = json.loads(sys.argv[1])
    job_dir = Path(asked["job_dir"])
    job = JobState(job_dir)
    state = job.read()
    begun = state.get("run_id", "") == asked["from_run_id"]
    if begun:
        (job_dir / "stop-requested").unlink(missing_ok=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        job.begin(state="starting", run_id=asked["run_id"], job=job_dir.name, started=now)
        state = job.read()
    print(json.dumps({"begun": begun, "state": state, "changed": begun}))


if __name__ == "__main__":
    main()
