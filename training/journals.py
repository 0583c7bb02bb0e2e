"""Read this machine's journal. Only Python's own library, of any version that a node may have."""

import json
import subprocess
import threading

from training.plain import one_line

MUCH = 64 << 20
"""Bytes that journalctl may write, the newest ones: a line with a progress bar in it may have 150,000."""
PATIENCE = 60  # seconds


def newest(*arguments, most=0):
    """The entries of `journalctl` with these arguments, the oldest first, each as a dict with one plain line as
    MESSAGE: the newest `most` of them (0: all), and no more than MUCH bytes unless all are asked for.

    Whatever goes wrong, what has been read until then is the answer; OSError where there is no journalctl.
    """
    # --all: without it a field of more than 4096 bytes is null.
    command = ["journalctl", "--no-pager", "--all", "--output=json", "--reverse", *arguments]
    if most:
        command.append(f"--lines={most}")
    found, read = [], 0
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        patience = threading.Timer(PATIENCE, process.kill)
        if most:  # who asks for all has time
            patience.start()
        for line in process.stdout:
            read += len(line)
            if most and read > MUCH:
                process.kill()
                break
            try:
                entry = json.loads(line.decode(errors="replace"))
            except ValueError:  # cut off by our own kill
                break
            found.append({**entry, "MESSAGE": one_line(text_of(entry.get("MESSAGE") or ""))})
        patience.cancel()
    return found[::-1]


def text_of(message):
    """Of what is no UTF-8, or has control characters in it, journalctl gives the bytes; of several fields, a list."""
    if isinstance(message, str):
        return message
    if all(isinstance(each, int) for each in message):
        return bytes(message).decode(errors="replace")
    return " ".join(text_of(each) for each in message)
