"""The answers of all nodes as one picture: the jobs, and what each node does for them.

The answers are those of ask_node with files/look.py, by node. The picture is what `-e output=FILE` of the status holds:

    nodes   name -> answers (true or false), problem, share (what it says of it; empty where it was not asked), units
            (job -> unit, unit_restarts, own_checkpoint: what the node knows without the share)
    jobs    the newest first, each with job, state, step, steps, loss, heldout_first, heldout_last, tokens_per_s,
            eta_seconds, restarts, started, updated, seconds (it has taken), silent_seconds (since its last word),
            checkpoint (step, age_seconds), alarm, reason, planned_nodes (that it was started on), and nodes:
            name -> does, unit, unit_restarts, own_checkpoint, gpu_utilisation or cpu_utilisation, gpu_memory_gb,
            step_seconds. What is not known is absent.
    problem why there are no jobs to see; empty otherwise
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import figures

GOING = ("starting", "running")
ACTIVE = ("active", "activating", "reloading", "deactivating")
# From the state file as they are. What it says of the hosts is in `nodes`.
TOLD = (
    *("job", "state", "step", "steps", "epoch", "loss", "heldout_first", "heldout_last", "tokens_per_s", "run_id"),
    *("world_size", "backend", "alarm", "reason", "failed_node", "failed_rank", "failed_at", "cause", "advice"),
    *("started", "updated", "train_seconds", "mean_step_seconds", "starts", "starts_without_step", "resumed_at"),
    *("log_every", "model", "plot", "script", "stepped", "attempt_began", "lasting_began"),
)
FIGURES = ("gpu_utilisation", "cpu_utilisation", "gpu_memory_gb", "gpu_power_w", "gpu_temperature_c", "seconds")
LEFT_OUT = {"answer": {}, "problem": "it is left out by --limit"}
NO_READER = "the shared directory cannot be read: {reasons}"


def picture(looks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put the answers together."""
    answers = {name: look.get("answer") or {} for name, look in looks.items()}
    nodes = {
        name: {
            "answers": bool(answers[name]),
            "problem": look.get("problem", ""),
            "share": answers[name].get("share", ""),
            "units": {job: unit_of(job, answers[name]) for job in answers[name].get("units", {})},
        }
        for name, look in looks.items()
    }
    reader = next((answer for answer in answers.values() if answer.get("share") == "answers"), None)
    if reader is None:
        asked = {name: node["problem"].partition(":")[0] or node["share"] for name, node in nodes.items()}
        reasons = ", ".join(f"{name}: {said}" for name, said in asked.items() if said)
        return {"nodes": nodes, "jobs": [], "problem": NO_READER.format(reasons=reasons or "no node was asked")}
    jobs = [job_of(name, found, reader["time"], answers) for name, found in reader["jobs"].items()]
    jobs.sort(key=lambda job: (job["state"] in GOING, job.get("started", ""), job["job"]), reverse=True)
    return {"nodes": nodes, "jobs": jobs, "problem": ""}


def job_of(name: str, found: Mapping[str, Any], now: float, answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return one job; `now` is the clock of the node that has read its files."""
    state = found.get("state")
    if state is None:
        unread = {"unread": True} if found.get("unread") else {}
        return {
            "job": name, "state": "unreadable", "reason": found["problem"], "nodes": {}, "planned_nodes": [], **unread,
        }  # fmt: skip
    job = {key: state[key] for key in TOLD if state.get(key) not in (None, "")} | {"job": name}
    if isinstance(state.get("starts"), int):
        job["restarts"] = max(0, state["starts"] - 1)
    if checkpoint := found.get("checkpoint"):
        job["checkpoint"] = {"step": checkpoint["step"], "age_seconds": max(0.0, now - checkpoint["time"])}
    began, updated = figures.moment(state.get("started")), figures.moment(state.get("updated"))
    if began and updated and job["state"] not in GOING:
        job["seconds"] = (updated - began).total_seconds()
    if job["state"] == "running":
        job["silent_seconds"] = max(0.0, now - found["written"])
        if (left := figures.seconds_left(state)) is not None:
            job["eta_seconds"] = left
    said = (found.get("figures") or {}).get("nodes") or {}
    training = list(state.get("nodes") or [])
    planned = list(state.get("planned_nodes") or training)
    given_up = state.get("given_up") or []
    here = [node for node, answer in answers.items() if is_on(answer, name)]
    job["planned_nodes"] = planned
    job["nodes"] = {
        node: node_of(name, job["state"], node in training, answers.get(node), said.get(node) or {})
        for node in dict.fromkeys([*planned, *training, *here])
    }
    for node in given_up:
        if job["state"] in GOING and job["nodes"].get(node, {}).get("does") in ("is missing", "failed"):
            job["nodes"][node]["does"] = "gave up"
    return job


def is_on(answer: Mapping[str, Any], job: str) -> bool:
    """Whether a node's unit of this job is at work."""
    return answer.get("units", {}).get(job, {}).get("active") in ACTIVE


def unit_of(job: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node knows of a job by itself."""
    unit = answer.get("units", {}).get(job, {})
    found: dict[str, Any] = {"unit": unit.get("active", "inactive"), "unit_restarts": unit.get("restarts", 0)}
    if copy := answer.get("copies", {}).get(job):
        age = max(0.0, answer.get("time", copy["time"]) - copy["time"])
        found["own_checkpoint"] = {"step": copy["step"], "age_seconds": age}
    return found


def node_of(
    job: str, state: str, trains: bool, answer: Mapping[str, Any] | None, said: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what one node does for a job; `answer` is None for one that is not in the inventory any more."""
    if not answer:
        return {"does": "gone" if answer is None else "does not answer"}
    unit, going = unit_of(job, answer), state in GOING
    active = unit["unit"]
    if active in ("active", "reloading"):
        does = "trains" if trains and state == "running" else "waits" if going else "ends"
    elif active == "activating":
        does = "starts"
    elif active == "deactivating":
        does = "stops"
    else:
        does = "failed" if active == "failed" and going else "is missing" if going else "idle"
    node: dict[str, Any] = {"does": does, **unit}
    if going:
        node |= {"step_seconds" if key == "seconds" else key: said[key] for key in FIGURES if key in said}
    if active == "active" and answer.get("gpus"):
        node |= of_cards(answer["gpus"])
    return node


def of_cards(cards: list[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the mean use and the fullest memory of a node's cards."""
    use = [card["utilisation"] for card in cards if card.get("utilisation") is not None]
    memory = [card["memory_mb"] for card in cards if card.get("memory_mb") is not None]
    found = {"gpu_utilisation": sum(use) / len(use) / 100} if use else {}
    return found | ({"gpu_memory_gb": max(memory) / 1000} if memory else {})


def find(seen: Mapping[str, Any], job: str, states: tuple[str, ...] = GOING) -> dict[str, Any]:
    """Return the job of this name, or without a name the only one in one of `states`.

    ValueError: one line that says what to write.
    """
    jobs = {each["job"]: each for each in seen["jobs"]}
    if seen["problem"]:
        raise ValueError(seen["problem"])
    if job:
        if job not in jobs:
            known = f"there are {', '.join(jobs)}" if jobs else "none has been started yet"
            raise ValueError(f"job={job}: there is no such job; {known}")
        return jobs[job]
    if unread := [each["reason"] for each in jobs.values() if each.get("unread")]:
        raise ValueError(f"write -e job=NAME, as not all jobs could be looked at: {unread[0]}")
    some = [name for name, each in jobs.items() if each["state"] in states]
    if len(some) == 1:
        return jobs[some[0]]
    what = " or ".join(states)
    raise ValueError(
        f"several jobs are {what}: write -e job=NAME, one of {', '.join(some)}"
        if some
        else f"no job is {what}: write -e job=NAME; playbooks/jobs.yml lists them all"
    )


def unreachable(seen: Mapping[str, Any]) -> list[str]:
    """Return a line for each node that does not answer."""
    return [f"{name}: {node['problem']}" for name, node in seen["nodes"].items() if not node["answers"]]


def head_problem(looks: Mapping[str, Mapping[str, Any]], head: str) -> str:
    """Return why the head shall not be asked for what is on the share, or nothing: its own mount may hang, and hold
    whoever asks there, while another node reads the share.
    """
    look = looks.get(head, LEFT_OUT)
    share = (look.get("answer") or {}).get("share") or "answers"
    return look["problem"] or ("" if share == "answers" else f"its shared directory: {share}")


def active_nodes(looks: Mapping[str, Mapping[str, Any]], job: str) -> list[str]:
    """Return the nodes whose unit of this job is at work."""
    return [name for name, look in looks.items() if is_on(look.get("answer") or {}, job)]


def has_workers(look: Mapping[str, Any], job: str) -> bool:
    """Whether a node's unit of this job, which is at work, may have more processes than its agent; where not even that
    was seen nobody can tell.
    """
    return ((look.get("answer") or {}).get("units", {}).get(job) or {}).get("processes") != 1


def only_active(looks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the job that units are at work for, where they agree on one; it needs no shared directory."""
    jobs = {job for look in looks.values() for job in (look.get("answer") or {}).get("units", {})}
    active = [job for job in jobs if active_nodes(looks, job)]
    return active[0] if len(active) == 1 else ""
