"""Write down that a job is stopped that has not said so itself; prints one JSON object. Imports training's state.

Its argument is a JSON object: job_dir. The answer: state (the file as it is then), and changed.
"""

import json
import sys
from pathlib import Path

from training.state import JobState

REASON = "its units were stopped before it had saved by itself; it goes on from its newest checkpoint"
OWN = "its script was told to end (SIGTERM); started again, it goes on from what it has saved itself"


def main():
    job = JobState(Path(json.loads(sys.argv[1])["job_dir"]))
    changed = job.progress(state="stopped", reason=OWN if job.read().get("script") else REASON)
    print(json.dumps({"state": job.read(), "changed": changed}))


if __name__ == "__main__":
    main()
