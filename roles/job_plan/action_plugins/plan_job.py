"""Turn what the user asked for into a plan of the job, or into one message; no node is contacted."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import re
import secrets
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "roles/job_plan")]

import own_scripts  # noqa: E402  (found through the line above)

from training import config  # noqa: E402
from training.files import sha256_of  # noqa: E402
from training.settings import DATA_FILES, HUB, Config  # noqa: E402

# What `-e` takes besides the settings of the config and the variables of the inventory.
OPTIONS = {"nnodes", "nnodes_min", "node_grace", "group", "config", "job", "follow", "lan_interface"}
OPTIONS |= {"nproc_per_node", "omp_num_threads"}
OPTIONS |= {"script", "script_dir", "script_args", "requirements"}
SWITCHES = {"nccl_debug"}
JOB_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
DEMO_DATA = ROOT / "build" / "demo-data"


def chosen_nodes(nnodes: Any, group: str, groups: Mapping[str, list[str]]) -> list[str]:
    """Return the first `nnodes` hosts of the group; ValueError with the fix where there are not so many."""
    if group not in groups:
        known = ", ".join(sorted(set(groups) - {"all", "ungrouped"}))
        raise ValueError(f"group={group}: there is no such group in the inventory; it has {known}")
    hosts = groups[group]
    if strangers := [host for host in hosts if host not in groups["cluster"]]:
        raise ValueError(f"group={group}: {', '.join(strangers)} is no member of the group cluster")
    text = str(nnodes).strip()
    if not re.fullmatch(r"[0-9]+", text) or not 1 <= int(text) <= len(hosts):
        raise ValueError(
            f"nnodes={text}: write a whole number from 1 to {len(hosts)}, "
            f"the hosts of group {group} ({', '.join(hosts)})"
        )
    return hosts[: int(text)]


def fewest(nnodes_min: Any, nodes: list[str]) -> int:
    """Return how many nodes the job goes on with when others are lost; ValueError with the fix."""
    text = str(nnodes_min).strip()
    if not re.fullmatch(r"[0-9]+", text) or not 1 <= int(text) <= len(nodes):
        raise ValueError(
            f"nnodes_min={text}: write a whole number from 1 to {len(nodes)} (nnodes), the fewest nodes to go on with "
            "when others are lost"
        )
    return int(text)


def grace(node_grace: Any) -> int:
    """Return how many seconds a lost node is waited for; ValueError with the fix."""
    text = str(node_grace).strip()
    if not re.fullmatch(r"[0-9]+", text) or not 1 <= int(text) <= 86400:
        raise ValueError(f"node_grace={text}: write the seconds to wait for a node that is lost, from 1 to 86400")
    return int(text)


def processes(nodes: list[str], variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Check nproc_per_node of each node that has one."""
    for name in nodes:
        value = variables[name].get("nproc_per_node", 1)
        if not re.fullmatch(r"[1-9][0-9]*", str(value)):
            raise ValueError(f"{name}: nproc_per_node is '{value}'; write the number of processes, 1 or more")


def make_demo_data() -> None:
    """Make it in a process of its own: inside Ansible's, the import of ansible_collections is Ansible's own affair."""
    command = [sys.executable, "-m", "training.demo_data", "--output", str(DEMO_DATA)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        raise ValueError(f"the demo data cannot be made: {made.stderr.strip()}")


def check_models(settings: Config, shared: str) -> None:
    """Refuse a model or tokenizer that lies on this machine only; ValueError says where to put it."""
    for key in ("model", "tokenizer"):
        value = getattr(settings, key)
        if value in ("", "scratch", "bytes") or Path(value).is_absolute():
            continue
        if value.startswith((".", "~")) or (ROOT / value).exists():
            there = f"{shared}/models/{Path(value).name}"
            raise ValueError(
                f"{key}: {value} is a path of this machine, which the nodes do not see; "
                f"copy it to {there} on the head and write {key}={there}, or write a hub id"
            )


def data_sources(settings: Config) -> dict[str, Path]:
    """Map config keys to files and directories of this machine that the head needs a copy of.

    What exists here is copied; an absolute path that does not is taken to exist on the head, for example in the
    shared directory; data sets of the hub are fetched there. Missing demo data is made.
    """
    sources = {}
    for key in ("data_train", "data_heldout"):
        value = getattr(settings, key)
        if not value or value.startswith(HUB):
            continue
        path = ROOT / value
        if path.parent == DEMO_DATA and not path.exists():
            make_demo_data()
        if path.exists():
            sources[key] = path
        elif not Path(value).is_absolute():
            raise ValueError(
                f"{key}: there is no file or directory {path}; write a path relative to {ROOT}, "
                "an absolute one that exists on the head, or hub:NAME"
            )
    return sources


def data_copies(key: str, source: Path, folder: Path) -> tuple[Path, list[dict[str, str]]]:
    """Return where `source` lies in `folder` on the head, and the copies (src, dest) that put it there.

    The name holds the content's hash, so that the config's hash covers the data and old data is never taken for new.
    """
    if source.is_file():
        place = folder / f"{sha256_of(source)[:12]}-{source.name}"
        return place, [{"src": str(source), "dest": str(place)}]
    files = sorted(path for path in source.rglob("*") if path.suffix in DATA_FILES and path.is_file())
    if not files:
        raise ValueError(f"{key}: there is no {', '.join(DATA_FILES)} file in the directory {source}")
    names = [str(path.relative_to(source)) for path in files]
    listing = "".join(f"{sha256_of(path)} {name}\n" for path, name in zip(files, names, strict=True))
    place = folder / f"{hashlib.sha256(listing.encode()).hexdigest()[:12]}-{source.name}"
    return place, [{"src": str(path), "dest": str(place / name)} for path, name in zip(files, names, strict=True)]


def archive(kind: str, files: Iterable[tuple[str, bytes | str, int]]) -> tuple[Path, str]:
    """Pack files (name, content, mode; a str is the target of a link) for the nodes. Return the archive and its hash:
    the same bytes for the same files, whenever and by whomever they are packed.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for name, content, mode in files:
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                packed.addfile(entry)
            else:
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))
        packed.addfile(tarfile.TarInfo("complete"))  # the last one: without it the archive was not unpacked whole
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:12]
    file = ROOT / "build" / f"{kind}-{digest}.tar"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(buffer.getvalue())
    return file, digest


def training_package() -> list[tuple[str, bytes | str, int]]:
    """The files of training/, which every job gets."""
    files = sorted((ROOT / "training").rglob("*.py"))
    return [(str(path.relative_to(ROOT)), path.read_bytes(), 0o644) for path in files]


def overrides(given: Mapping[str, Any]) -> list[str]:
    """Return the settings of the config among the variables of `-e`, as key=value.

    ValueError for a name that nobody reads: `-e stesp=50` would otherwise train on without a word.
    """
    settings = {field.name for field in dataclasses.fields(Config)}
    files = [ROOT / "inventory/group_vars/all.yml", *ROOT.glob("roles/*/defaults/main.yml")]
    known = settings | OPTIONS | SWITCHES | {name for file in files for name in yaml.safe_load(file.read_text())}
    for name, value in given.items():
        if name not in known and not name.startswith("ansible_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"train.yml takes {', '.join(sorted(OPTIONS | SWITCHES))}; or a setting"
            )
            raise ValueError(f"-e {name}: nothing has this name; {hint}")
        if name in SWITCHES and str(value).lower() not in ("true", "false"):
            raise ValueError(f"-e {name}={value}: write true or false")
    return [f"{name}={value}" for name, value in given.items() if name in settings]


def trained(arguments: Mapping[str, Any], given: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the plan that a config decides."""
    for name in ("script_dir", "script_args", "requirements"):
        if name in given:
            raise ValueError(f"-e {name}: that is for a script of your own; write -e script=FILE too")
    file = Path(str(arguments["config"]))
    settings = config.load(file if file.exists() else ROOT / file, overrides(given))
    job = job_name(arguments["job"] or file.stem)
    check_models(settings, cluster["cluster_shared_path"])
    folder = Path(f"{cluster['cluster_state_path']}/jobs/{job}")
    copies, places = [], {}
    for key, source in data_sources(settings).items():
        place, files = data_copies(key, source, folder / "data")
        places[key] = str(place)
        copies += files
    final = dataclasses.replace(settings, **places)
    about = {"job": job, "recipe": final.recipe, "config": final.to_yaml(), "config_sha256": final.sha256()}
    return {**about, "steps": final.steps, "data": copies, "archives": [], "packages": {}}


def own(
    arguments: Mapping[str, Any], given: Mapping[str, Any], cluster: Mapping[str, Any], typed: Sequence[str]
) -> dict[str, Any]:
    """The part of the plan that a script of the user's own decides; `typed` is each -e as it was typed."""
    words, rest = own_scripts.words(arguments["script_args"], typed)
    settings = overrides({name: value for name, value in given.items() if name not in rest})
    if settings or "config" in given:
        name = "config" if "config" in given else settings[0].partition("=")[0]
        raise ValueError(
            f"-e {name}: that is for Minos's own training; a script takes its settings by script_args: "
            f"-e \"script_args='--{name} ...'\""
        )
    script = own_path("script", arguments["script"])
    given_folder = str(arguments["script_dir"])
    folder = own_path("script_dir", given_folder) if given_folder else None
    files = own_scripts.files_of(script, folder, ROOT)
    file, digest = archive("own", files)
    place = f"own-{digest}"
    about = {"recipe": "script", "script": f"{place}/{script.relative_to(folder or script.parent)}", "arguments": words}
    job = job_name(arguments["job"] or re.sub(r"[^a-z0-9_.-]+", "-", script.stem.lower()))
    here = f"{cluster['cluster_state_path']}/jobs/{job}"
    packages = {}
    if arguments["requirements"]:
        lock = (ROOT / f"training/requirements-{cluster['python_env_variant']}.txt").read_text()
        wanted = own_scripts.extra_packages(own_path("requirements", arguments["requirements"]), lock)
        name = f"packages-{hashlib.sha256((wanted + lock).encode()).hexdigest()[:12]}"
        packages = {
            "wanted": wanted,
            "path": f"{here}/{name}",
            "shared": f"{cluster['cluster_shared_path']}/jobs/{job}/{name}",
        }
        about["packages"] = name
    text = yaml.safe_dump(about, sort_keys=False)
    return {
        "job": job,
        "recipe": "script",
        "config": text,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "steps": 0,
        "data": [],
        "archives": [{"archive": str(file), "path": f"{here}/{place}"}],
        "packages": packages,
    }


def own_path(option: str, given: Any) -> Path:
    """A file, or for script_dir a folder, of this machine."""
    path = Path(str(given)).expanduser()
    path = (path if path.exists() else ROOT / path).resolve()
    wanted, there = ("folder", path.is_dir()) if option == "script_dir" else ("file", path.is_file())
    if not there:
        raise ValueError(f"{option}={given}: there is no {wanted} {path} on this machine")
    return path


def job_name(name: Any) -> str:
    """The name, if it can be one of a folder and of a unit; ValueError with the fix."""
    if not JOB_NAME.fullmatch(str(name)):
        raise ValueError(f"job={name}: write a name of small letters, digits, '-', '_' and '.', such as demo-2")
    return str(name)


def plan(
    arguments: Mapping[str, Any], given: Mapping[str, Any], task_vars: Mapping[str, Any], typed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the plan: nodes, config, code and data of the job. ValueError: one line that says what to write.

    `given` are the variables of `-e` on the command line, `typed` each -e as it was typed.
    """
    nodes = chosen_nodes(arguments["nnodes"], arguments["group"], task_vars["groups"])
    processes(nodes, task_vars["hostvars"])
    cluster = task_vars["hostvars"][nodes[0]]
    work = own(arguments, given, cluster, typed) if arguments["script"] else trained(arguments, given, cluster)
    job = work["job"]
    folder = f"{cluster['cluster_state_path']}/jobs/{job}"
    file, digest = archive("code", training_package())
    code = {"archive": str(file), "path": f"{folder}/code-{digest}"}
    return {
        **work,
        "nodes": nodes,
        "nnodes_min": fewest(arguments["nnodes_min"], nodes),
        "node_grace": grace(arguments["node_grace"]),
        # Two people may start it in the same second.
        "run_id": f"{job}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}",
        "folder": folder,
        "shared": f"{cluster['cluster_shared_path']}/jobs/{job}",
        "code": code,
        "archives": [code, *work["archives"]],
    }


class ActionModule(ActionBase):
    """Arguments: nnodes, nnodes_min, node_grace, group, config, job, script, script_dir, script_args, requirements, as
    given on the command line.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        given, typed = load_extra_vars(self._loader), context.CLIARGS.get("extra_vars", ())
        try:
            result.update(changed=False, plan=plan(self._task.args, given, task_vars or {}, typed))
        except (ValueError, OSError) as error:
            raise AnsibleActionFail(str(error)) from None
        return result
