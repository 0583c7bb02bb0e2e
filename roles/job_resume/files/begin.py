"""Write down that a job starts again; prints one JSON object. Imports training's state.

Its argument is a JSON object: job_dir, run_id, instead_of (the run id that was seen), nodes (those it was started on),
nnodes_min, without (those of the nodes that are off). The answer: refused (why not; empty: it starts), changed.
"""

import json
import sys
from pathlib import Path

from training.state import JobState


def main():
    asked = json.loads(sys.argv[1])
    job_dir = Path(asked["job_dir"])
    start = {key: asked[key] for key in ("run_id", "instead_of", "nodes", "nnodes_min", "without")}
    refused = JobState(job_dir).claim(job=job_dir.name, **start)
    if not refused:
        (job_dir / "stop-requested").unlink(missing_ok=True)
    print(json.dumps({"refused": refused, "changed": not refused}))


if __name__ == "__main__":
    main()
