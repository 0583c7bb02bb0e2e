"""Take a job's unit and its settings from this machine; prints one JSON object. Only Python's own library.

Its argument is a JSON object: job, settings (the directory of this node's settings of jobs). The answer: changed.
"""

import json
import subprocess
import sys
from pathlib import Path


def main():
    asked = json.loads(sys.argv[1])
    unit, file = f"minos-train@{asked['job']}.service", Path(asked["settings"], f"{asked['job']}.env")
    there = file.exists()
    if there:
        subprocess.run(["systemctl", "disable", "--now", unit], capture_output=True, check=False)
        subprocess.run(["systemctl", "reset-failed", unit], capture_output=True, check=False)
        file.unlink()
    print(json.dumps({"changed": there}))


if __name__ == "__main__":
    main()
