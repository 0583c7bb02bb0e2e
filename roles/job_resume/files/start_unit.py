"""Start the unit of a job on this machine under a new run id, now and at boot; prints one JSON object.

Its argument is a JSON object: job, run_id, settings (the directory of this node's settings of jobs). The answer:
changed. Only Python's own library.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path


def systemctl(*arguments):
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode and arguments[0] != "reset-failed":
        sys.exit(done.stderr.strip() or f"systemctl {' '.join(arguments)} failed")


def main():
    asked = json.loads(sys.argv[1])
    file, unit = Path(asked["settings"], f"{asked['job']}.env"), f"minos-train@{asked['job']}.service"
    text = file.read_text(encoding="utf-8")
    new = re.sub(r"(?m)^MINOS_RUN_ID=.*$", f"MINOS_RUN_ID={asked['run_id']}", text)
    # A name that ends otherwise is nobody's settings; owner and mode are those of the old file.
    look, part = file.stat(), file.with_name(f".{file.name}.part")
    part.touch(mode=0o600)
    part.write_text(new, encoding="utf-8")
    part.chmod(look.st_mode & 0o7777)
    os.chown(part, look.st_uid, look.st_gid)
    part.replace(file)
    systemctl("reset-failed", unit)
    systemctl("enable", unit)
    # The unit itself waits for the store and the share.
    systemctl("restart", "--no-block", unit)
    print(json.dumps({"changed": True}))


if __name__ == "__main__":
    main()
