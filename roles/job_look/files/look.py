"""Say what this machine knows of the jobs; prints one JSON object. Changes nothing. Only Python's own library.

Its argument is a JSON object: shared and state (directories), read_share (whether to read the jobs there), settings
(the directory of this node's settings of jobs). The answer:

    time      this machine's clock
    units     job -> active, sub, restarts, enabled and processes (how many there are now) of its unit here
    settings  job -> what its MINOS_ settings say here, and ready: whether its code and config are here
    copies    job -> step and time of the newest checkpoint on this machine's own disk
    gpus      utilisation and memory of each card, where a program of somebody else's trains: ours says it itself
    share     "answers", "hangs", or why it cannot be read; empty where it was not asked
    jobs      job -> state (its file), written (when), began, checkpoint (newest), figures (newest of all nodes)
"""

import collections
import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 2.5  # seconds for what may hang: the share, a sick driver
TAIL = 1 << 16  # bytes of the metrics in which the newest figures are looked for
PROPERTIES = "Id,ActiveState,SubState,NRestarts,UnitFileState"
PROC = Path("/proc")
OF_THE_SHARE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # errors that are not one folder's
CARDS = "utilization.gpu,memory.used,memory.total"


def output(*command):
    """What a command says within PATIENCE, else nothing. It is killed then, and not waited for: what the kernel holds,
    as it does nvidia-smi where a card is lost, does not even die.
    """
    nothing = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, text=True)
        return process.communicate(timeout=PATIENCE)[0]
    except OSError:
        return ""
    except subprocess.TimeoutExpired:
        process.kill()
        return ""


def units():
    found, counts = {}, processes()
    for block in output("systemctl", "show", f"--property={PROPERTIES}", "minos-train@*.service").split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if unit.get("Id", "").startswith("minos-train@"):
            job = unit["Id"].removeprefix("minos-train@").removesuffix(".service")
            restarts = unit.get("NRestarts", "")
            found[job] = {
                "active": unit.get("ActiveState", ""),
                "sub": unit.get("SubState", ""),
                "restarts": int(restarts) if restarts.isdecimal() else 0,
                "enabled": unit.get("UnitFileState") == "enabled",
                "processes": counts[job],
            }
    return found


def processes():
    """How many there are of each job's unit, from the control group that each process is in: one in each hierarchy."""
    counts = collections.Counter()
    for file in PROC.glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names = {line.rpartition("/")[2] for line in file.read_text(encoding="utf-8").splitlines()}
            ours = (name for name in names if name.startswith("minos-train@") and name.endswith(".service"))
            counts.update(name.removeprefix("minos-train@").removesuffix(".service") for name in ours)
    return counts


def settings(folder, state):
    """Only ours: the others may hold a proxy's password."""
    found = {}
    for file in sorted(folder.glob("*.env")):
        lines = (line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines() if "=" in line)
        values = {name: value for name, value in lines if name.startswith("MINOS_") or name == "PYTHONPATH"}
        code, config = Path(values.pop("PYTHONPATH", "/nowhere")), state / "jobs" / file.stem / "config.yaml"
        names = {name.removeprefix("MINOS_").lower(): value for name, value in values.items()}
        found[file.stem] = names | {"ready": (code / "complete").exists() and config.exists()}
    return found


def newest_checkpoint(folders):
    """Step and time of the newest complete-looking one; whether it is valid, only its hashes could say."""
    best = None
    for folder in folders:
        for path in folder.glob("step-*"):
            number, manifest = path.name[5:], path / "manifest.json"
            if number.isdecimal() and manifest.exists() and (best is None or int(number) > best["step"]):
                best = {"step": int(number), "time": manifest.stat().st_mtime}
    return best


def copies(state):
    found = {}
    for folder in state.glob("jobs/*"):
        if best := newest_checkpoint(folder.glob("checkpoints/*")):
            found[folder.name] = best
    return found


def rows(text):
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut in half: by us, or by a full disk
            continue


def figures(metrics):
    """The newest row of a progress line, and the time of the oldest row of all."""
    if not metrics.exists():
        return None, None
    with metrics.open("rb") as stream:
        first = next(rows(stream.readline().decode()), {})
        stream.seek(max(0, metrics.stat().st_size - TAIL))
        steps = [row for row in rows(stream.read().decode(errors="replace")) if row.get("type") == "step"]
    return (steps[-1] if steps else None), first.get("time")


def changed(folder):
    """When something came into it, went, or was written anew, as the state is; 0 where nobody can say."""
    try:
        return folder.stat().st_mtime
    except OSError as problem:
        if problem.errno in OF_THE_SHARE:
            raise
        return 0


def jobs(shared):
    """Yield first the names of all, then (name, what there is of it) of one after the other, the newest first."""
    folders = sorted((shared / "jobs").iterdir(), key=changed, reverse=True)
    yield [folder.name for folder in folders]
    for folder in folders:
        try:
            yield folder.name, job(folder)
        except (FileNotFoundError, NotADirectoryError):  # no job, or one that is being removed
            yield folder.name, None
        except OSError as problem:
            if problem.errno in OF_THE_SHARE:
                raise
            yield folder.name, {"problem": f"{folder} cannot be read ({problem.strerror})"}
        except (ValueError, KeyError, TypeError):
            file = folder / "state.json"
            yield folder.name, {"problem": f"{file} cannot be understood; delete it and start the job again"}


def job(folder):
    file = folder / "state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["state"]  # what has none is no state
    newest, began = figures(folder / "metrics" / "metrics.jsonl")
    return {
        "state": state,
        "written": file.stat().st_mtime,
        "began": began,
        "checkpoint": newest_checkpoint([folder / "checkpoints"]),
        "figures": newest,
    }


def within(seconds, ask):
    """Yield what `ask` yields, asked by another process: it may hang where this one must not. The last is "end", or
    ["error", why]; without it more takes too long.
    """
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(inlet)
        # Not the connection's: a child that even SIGKILL does not end would keep it open.
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        with os.fdopen(outlet, "w") as stream:
            try:
                for each in ask():
                    print(json.dumps(["said", each]), file=stream, flush=True)
                end = "end"
            except Exception as error:  # whatever it is: the rest of the answer is worth having
                end = ["error", str(error) or type(error).__name__]
            print(json.dumps(end), file=stream)
        os._exit(0)
    os.close(outlet)
    deadline, text = time.monotonic() + seconds, b""
    while select.select([inlet], [], [], max(0, deadline - time.monotonic()))[0]:
        piece = os.read(inlet, 1 << 16)
        if not piece:
            os.waitpid(child, 0)
            return
        *lines, text = (text + piece).split(b"\n")
        yield from map(json.loads, lines)
    os.kill(child, signal.SIGKILL)  # it goes when the share lets go


def read(shared):
    """What the share says of itself, and of the jobs; of a slow one what came in time, and which did not."""
    names, found, said = [], {}, "hangs"
    for each in within(PATIENCE, lambda: jobs(shared)):
        if each == "end":
            return "answers", {name: what for name, what in found.items() if what}
        kind, what = each
        if kind == "error":
            return what, {}
        if names:
            found[what[0]], said = what[1], "answers"
        else:
            names = what
    slow = f"the shared directory is slow: it was not read within {PATIENCE} s. The same again may find it"
    unread = {name: {"problem": slow, "unread": True} for name in names if name not in found} if found else {}
    return said, {name: what for name, what in found.items() if what} | unread


def cards(found, here):
    others = [job for job, unit in found.items() if unit["active"] == "active" and here.get(job, {}).get("recipe")]
    if all(here[job]["recipe"] in ("finetune", "hello") for job in others) or not Path("/proc/driver/nvidia").exists():
        return []
    lines = output("nvidia-smi", f"--query-gpu={CARDS}", "--format=csv,noheader,nounits").splitlines()
    table = [[float(word) if word.strip()[:1].isdecimal() else None for word in line.split(",")] for line in lines]
    return [dict(zip(("utilisation", "memory_mb", "memory_total_mb"), row, strict=False)) for row in table]


def main():
    asked = json.loads(sys.argv[1])
    shared, state = Path(asked["shared"]), Path(asked["state"])
    found = units()
    here = settings(Path(asked["settings"]), state)
    answer = {"units": found, "settings": here, "copies": copies(state), "gpus": cards(found, here)}
    answer |= {"share": "", "jobs": {}}
    if asked["read_share"]:
        answer["share"], answer["jobs"] = read(shared)
    print(json.dumps(answer | {"time": time.time()}))


if __name__ == "__main__":
    main()
