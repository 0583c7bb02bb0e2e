"""Stop the unit of a job on this machine, now and at boot; prints one JSON object. Only Python's own library.

Its argument is a JSON object: job. The answer: was (what the unit was before), and changed.
"""

import json
import subprocess
import sys


def systemctl(*arguments):
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)


def main():
    unit = f"minos-train@{json.loads(sys.argv[1])['job']}.service"
    was, enabled = systemctl("is-active", unit).stdout.strip(), systemctl("is-enabled", unit).stdout.strip()
    done = systemctl("disable", "--now", unit) if was in ("active", "activating") or enabled == "enabled" else None
    if done and done.returncode:
        sys.exit(done.stderr.strip() or f"systemctl disable --now {unit} failed")
    if done:  # an agent that is told to stop ends with 1, as one that fails
        systemctl("reset-failed", unit)
    print(json.dumps({"was": was, "changed": done is not None}))


if __name__ == "__main__":
    main()
