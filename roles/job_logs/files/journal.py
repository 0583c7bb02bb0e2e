"""Read what a job has said on this machine; prints one JSON object. Changes nothing.

Its argument is a JSON object: job, started (Unix time of its last start, 0: not known), clock (that of the machine that
asks) and everything (else the progress lines are left out, and what is older than the newest 20,000 lines). The answer:
time (this machine's clock), and lines, each [time, who, text]: who is the program that said it.
"""

import json
import re
import sys
import time

from training.journals import newest

MOST = 20000
PROGRESS = re.compile(r"step \d+/\d+ epoch |held-out loss \S+ at step")
EARLIER = 10  # seconds before the start, and how far clocks may be apart
FIELDS = "MESSAGE,SYSLOG_IDENTIFIER,_PID"
# Of the kernel only what ends a training: memory that has run out, and errors of a card.
KERNEL = ("Out of memory: Killed process", "oom-kill:", "NVRM: Xid", "Memory cgroup out of memory")


def entries(*arguments, most=0):
    for entry in newest(f"--output-fields={FIELDS}", *arguments, most=most):
        at = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        yield at, entry.get("SYSLOG_IDENTIFIER") or "", entry["MESSAGE"]


def main():
    asked = json.loads(sys.argv[1])
    off = time.time() - asked["clock"]
    started = asked["started"] - EARLIER + (off if abs(off) > EARLIER else 0)
    since = [f"--since=@{started:.0f}"] if asked["started"] else []
    most = 0 if asked["everything"] else MOST
    units = [f"--unit={name}@{asked['job']}.service" for name in ("minos-train", "minos-train-failed")]
    lines = list(entries(*units, *since, most=most))
    if not asked["everything"]:
        lines = [line for line in lines if not PROGRESS.match(line[2])]
    if lines and since:
        kernel = entries("--dmesg", *since, most=2000)
        lines += [line for line in kernel if any(word in line[2] for word in KERNEL)]
    # Several lines may have one time: those of a traceback, which came together, stay in their order.
    print(json.dumps({"time": time.time(), "lines": sorted(lines, key=lambda line: line[0])}))


if __name__ == "__main__":
    main()
