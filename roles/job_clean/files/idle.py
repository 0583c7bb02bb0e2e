"""Look whether a job is still as it was when its owner was asked; prints one JSON object. Imports training's state.

Its argument is a JSON object: job_dir, run_id (its last start as it was seen then). The answer: why_not (empty: it is).
"""

import json
import sys
from pathlib import Path

from training.state import ENDED, JobState, StateError


def main():
    asked = json.loads(sys.argv[1])
    try:
        content = JobState(Path(asked["job_dir"])).read()
    except StateError:  # nothing can run by such a file
        content = {"run_id": asked["run_id"]}
    state, same = content.get("state", "gone"), content.get("run_id", "") == asked["run_id"]
    as_it_was = same and state in (*ENDED, "gone")
    print(json.dumps({"why_not": "" if as_it_was else f"it was started again and is {state}"}))


if __name__ == "__main__":
    main()
