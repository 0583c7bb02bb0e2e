"""Make the demo's instruction pairs from the documentation of the installed Ansible modules.

Nothing is downloaded, no Ansible code is executed, torch is not needed.

    python -m training.demo_data --output DIR

writes DIR/train.jsonl, DIR/heldout.jsonl and DIR/sources.json. Each documented example gives one pair: its
`name` is the instruction, the rest of the task, as its author laid it out, the answer. About every tenth
module (by a hash of its name) goes to the held-out file as a whole, so the held-out loss is about modules
never seen in training. The same ansible package gives the same files; a second call finds that and changes
nothing.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from training.files import sha256_of, write_atomically

# Collections with many modules and examples in plain style; ansible.builtin is read as well.
COLLECTIONS = (
    "ansible.posix",
    "community.crypto",
    "community.docker",
    "community.general",
    "community.libvirt",
    "community.postgresql",
    "containers.podman",
    "kubernetes.core",
)
FORMAT = 1  # raise it when the same package shall give other pairs
HELDOUT_PERCENT = 10
SHORTEST_INSTRUCTION = 8  # characters; shorter names say nothing
LONGEST_PAIR = 2000  # characters; a handful of examples are whole playbooks


def module_files() -> dict[str, Path]:
    """Full module name -> source file, sorted; found without importing (or executing) any Ansible code.

    Errors: FileNotFoundError when the `ansible` package is not installed here.
    """
    core = importlib.util.find_spec("ansible")
    collections = importlib.util.find_spec("ansible_collections")
    if core is None or collections is None:
        raise FileNotFoundError("the Python package `ansible` is not installed here; pip install ansible==12.3.0")
    found = {f"ansible.builtin.{file.stem}": file for file in Path(core.origin).parent.glob("modules/*.py")}
    for collection in COLLECTIONS:
        folder = Path(*collection.split("."), "plugins/modules")
        # Several where Ansible runs in this process; the package's own place is one of them.
        for root in collections.submodule_search_locations:
            for file in Path(root, folder).glob("*.py"):
                found.setdefault(f"{collection}.{file.stem}", file)
    return {name: found[name] for name in sorted(found) if not name.rpartition(".")[2].startswith("_")}


def docstrings(file: Path) -> tuple[str, str]:
    """The texts of DOCUMENTATION and EXAMPLES as the module assigns them ("" where it does not)."""
    texts = {"DOCUMENTATION": "", "EXAMPLES": ""}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        ):
            name = node.targets[0].id
            if name in texts and isinstance(node.value.value, str):
                texts[name] = node.value.value
    return texts["DOCUMENTATION"], texts["EXAMPLES"]


def is_deprecated(documentation: str) -> bool:
    """Whether the module's own documentation has a `deprecated` part (or cannot be read, which we skip
    alike).
    """
    try:
        content = yaml.safe_load(documentation)
    except yaml.YAMLError:
        return True
    return not isinstance(content, dict) or "deprecated" in content


def pairs_of(examples: str) -> Iterator[tuple[str, str]]:
    """(instruction, answer) for each task in the EXAMPLES text whose layout allows its name to be taken out.

    The answer is the author's text without the `name`; it is kept only if it parses to the same task.
    """
    try:
        root = yaml.compose(examples, Loader=yaml.SafeLoader)
        tasks = yaml.safe_load(examples)
    except (yaml.YAMLError, ValueError):  # tags such as !vault, dates out of range
        return
    if not isinstance(root, yaml.SequenceNode):
        return
    lines = examples.splitlines()
    ends = [following.start_mark.line for following in root.value[1:]] + [len(lines)]
    for node, task, end in zip(root.value, tasks, ends, strict=True):
        if not isinstance(task, dict) or not isinstance(task.get("name"), str) or "hosts" in task:
            continue
        keys = [key for key, _ in node.value]
        kept = []
        # A value reaches to the next key: the parser's own end marks lie behind blank lines and comments.
        for key, after in zip(keys, [key.start_mark.line for key in keys[1:]] + [end], strict=True):
            block = lines[key.start_mark.line : after]
            if key.value != "name" and block:
                # Without the dash that the first key of a list item stands behind.
                block[0] = " " * key.start_mark.column + block[0][key.start_mark.column :]
                kept += block
        answer = textwrap.dedent("\n".join(line.rstrip() for line in kept if not line.lstrip().startswith("#")))
        instruction = " ".join(task["name"].split())
        try:
            same = yaml.safe_load(answer) == {key: value for key, value in task.items() if key != "name"}
        except (yaml.YAMLError, ValueError):
            same = False
        if same and len(instruction) >= SHORTEST_INSTRUCTION and len(instruction) + len(answer) <= LONGEST_PAIR:
            yield instruction, answer.strip("\n") + "\n"


def is_heldout(module: str) -> bool:
    """Whether the whole module belongs to the held-out file; depends on nothing but its name."""
    return int(hashlib.sha256(module.encode()).hexdigest(), 16) % 100 < HELDOUT_PERCENT


def collect() -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, object]]:
    """Training rows, held-out rows and what they were made from. A pair that two modules share is used
    once.
    """
    train, heldout, seen, modules = [], [], set(), 0
    for module, file in module_files().items():
        documentation, examples = docstrings(file)
        if is_deprecated(documentation):
            continue
        rows = heldout if is_heldout(module) else train
        before = len(seen)
        for instruction, answer in pairs_of(examples):
            if (instruction, answer) not in seen:
                seen.add((instruction, answer))
                rows.append({"instruction": instruction, "response": answer, "module": module})
        modules += len(seen) > before
    sources = {"modules": modules, "train_pairs": len(train), "heldout_pairs": len(heldout)}
    return train, heldout, sources


def fingerprint() -> dict[str, object]:
    """What the files depend on; equal fingerprints give equal files."""
    return {
        "ansible": importlib.metadata.version("ansible"),
        "ansible_core": importlib.metadata.version("ansible-core"),
        "collections": ["ansible.builtin", *COLLECTIONS],
        "format": FORMAT,
        "heldout_percent": HELDOUT_PERCENT,
    }


def is_current(output: Path) -> bool:
    """Whether `output` holds what the installed package would give, unchanged (checked by hash)."""
    try:
        sources = json.loads((output / "sources.json").read_text(encoding="utf-8"))
        made_from = {key: sources[key] for key in fingerprint()}
        return made_from == fingerprint() and all(
            sha256_of(output / name) == digest for name, digest in sources["sha256"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.demo_data", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    output = parser.parse_args(arguments).output
    try:
        if is_current(output):
            print(f"unchanged: {output} already holds the pairs of ansible {fingerprint()['ansible']}")
            return 0
        train, heldout, sources = collect()
        for name, rows in (("train.jsonl", train), ("heldout.jsonl", heldout)):
            write_atomically(output / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        sources |= fingerprint()
        sources["sha256"] = {name: sha256_of(output / name) for name in ("train.jsonl", "heldout.jsonl")}
        write_atomically(output / "sources.json", json.dumps(sources, indent=2, sort_keys=True) + "\n")
    except (OSError, importlib.metadata.PackageNotFoundError) as error:
        print(f"demo data: {error}", file=sys.stderr)
        return 2
    print(
        f"made: {output} with {sources['train_pairs']} training, {sources['heldout_pairs']} held-out pairs "
        f"from {sources['modules']} modules of ansible {sources['ansible']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
