"""Read a job's state file, or say soon why not; prints one JSON object. Changes nothing. Only Python's own library.

Its argument is a JSON object: file, patience (seconds). The answer: text (what is in it; empty where there is none),
age (seconds since it was written), problem (why it cannot be read; empty otherwise).
"""

import json
import os
import signal
import subprocess
import sys
import time

READ = 'stat --format=%Y -- "$1" && exec cat -- "$1"'
SILENT = "the shared directory does not answer"
NO_FILE = "No such file or directory"


def read(file, patience):
    """By another process, with streams of its own: one that a dead server holds heeds no signal, not even SIGKILL.

    It is left behind then, and neither this program nor the connection waits for it.
    """
    child = subprocess.Popen(
        ["/bin/sh", "-c", READ, "sh", file],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"LC_ALL": "C"},
        start_new_session=True,
    )
    try:
        said, why = child.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return {"text": "", "age": 0, "problem": SILENT}
    if child.returncode:
        why = (why.strip().splitlines() or ["without a word"])[-1]
        return {"text": "", "age": 0, "problem": "" if why.endswith(NO_FILE) else why}
    written, _, text = said.partition("\n")
    return {"text": text, "age": max(0, time.time() - int(written)), "problem": ""}


def main():
    asked = json.loads(sys.argv[1])
    answer = read(asked["file"], asked["patience"])
    if answer["problem"] and answer["problem"] != SILENT:  # one that is replaced meanwhile is stale for a moment
        time.sleep(0.2)
        answer = read(asked["file"], asked["patience"])
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
