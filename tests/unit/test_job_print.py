"""`playbooks/print.yml`: what is shown is what the unit runs, read from the very texts that train.yml writes."""

import json
import shlex
import subprocess
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.template import trust_as_template
from paths import ROOT, action_plugin
from rendering import templar

show_command = action_plugin("job_print", "show_command")
PLAN = {"job": "demo", "recipe": "script", "nodes": ["node1", "node2"], "nnodes_min": 1, "node_grace": 60}
PLAN |= {"run_id": "demo-1", "code": {"path": "/code"}, "packages": {"path": "/packages"}}
VALUES = {
    "job_node_found": {"gpus": 2, "cores": 8, "interface": "lan0", "runs": False, "cards": ["NCCL_P2P_DISABLE=1"]},
    "job_node_plan": PLAN,
    "job_node_store": "10.0.0.1:29500",
    "job_node_address": "10.0.0.2",
    "inventory_hostname": "node2",
    "cluster_proxy_env": {"no_proxy": "a b"},
    "cluster_user": "minos",
    "cluster_env_path": "/env",
    "cluster_state_path": "/state",
    "cluster_shared_path": "/srv",
}


def rendered(template: str) -> str:
    text = "#jinja2: trim_blocks: True\n" + (ROOT / "templates" / template).read_text()
    return templar("job_node", **VALUES).template(trust_as_template(text))


@pytest.fixture
def texts():
    return {"unit": rendered("minos-train@.service.j2"), "settings": rendered("job.env.j2"), "rendezvous": ""}


def test_it_is_the_units_line_with_everything_filled_in(texts):
    command = show_command.command_of("demo", **texts, by_hand="hand-1")
    assert command.directory == "/state/jobs/demo"
    line = shlex.join(command.words)
    assert "/env/bin/python -m torch.distributed.run --nnodes=1:2 --nproc-per-node=2" in line
    assert "--rdzv-endpoint=10.0.0.1:29500 --rdzv-id=hand-1 " in line
    assert "-m training.script --config /state/jobs/demo/config.yaml --job-dir /srv/jobs/demo" in line
    assert "$" not in line and "%" not in line
    assert (command.environment["PYTHONPATH"], command.environment["MINOS_PACKAGES"]) == ("/code", "/packages")
    assert (command.environment["OMP_NUM_THREADS"], command.environment["MINOS_NODE"]) == ("4", "node2")


def test_a_start_by_hand_is_none_that_has_ended(texts):
    """Under the id of the last start the workers find that start's end, and have nothing to do."""
    command = show_command.command_of("demo", **texts, by_hand="hand-1")
    assert command.environment["MINOS_RENDEZVOUS"] == "hand-1" and "MINOS_RUN_ID" not in command.environment


def test_who_joins_others_by_hand_belongs_to_their_start(texts):
    """As rank 0 it would give the job another run id, and the others would find themselves superseded."""
    command = show_command.command_of("demo", **texts, by_hand="demo-1.3", joins=True)
    assert command.environment["MINOS_RENDEZVOUS"] == "demo-1.3" and command.environment["MINOS_RUN_ID"]


def test_a_job_that_has_run_keeps_the_rendezvous_that_is_open(texts):
    command = show_command.command_of(
        "demo", **texts | {"rendezvous": "MINOS_RENDEZVOUS=demo-1.3\nMINOS_CLOCK=1.5\n"}, by_hand=""
    )
    assert "--rdzv-id=demo-1.3" in command.words


def test_a_shell_understands_it(texts):
    """The real shell sees the very words and variables; only the program is another one."""
    command = show_command.command_of("demo", **texts, by_hand="hand-1")
    lines = show_command.lines_of(command)
    assert max(map(len, lines)) < 160
    first = next(number for number, line in enumerate(lines) if line.startswith("/"))
    lines[0], lines[first] = "true", f"printf '%s\\n' \"$no_proxy\" {lines[first]}"
    shown = subprocess.run(["sh", "-eu", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["a b", *command.words]


def test_a_proxys_password_is_not_shown():
    line = "export https_proxy='http://me:se:cret@proxy.example:3128'"
    assert show_command.without_password(line) == "export https_proxy='http://me:PASSWORD@proxy.example:3128'"
    for plain in ("export MINOS_STORE=10.0.0.1:29500", "export http_proxy=http://proxy.example:3128 # me@x"):
        assert show_command.without_password(plain) == plain


@pytest.mark.parametrize("missing", ["unit", "settings"])
def test_a_job_that_is_not_there_is_said_so(missing, texts):
    with pytest.raises(ValueError, match="there is no job demo"):
        show_command.command_of("demo", **texts | {missing: ""}, by_hand="")


def test_what_an_own_script_gets_and_the_recipes_do_not(texts):
    own = show_command.command_of("demo", **texts, by_hand="hand-1").environment
    assert "HF_HUB_OFFLINE" not in own, "nothing has been fetched for it"
    VALUES["job_node_plan"] = {**PLAN, "recipe": "finetune", "packages": {}}
    try:
        ours = show_command.command_of("demo", **texts | {"settings": rendered("job.env.j2")}, by_hand="").environment
    finally:
        VALUES["job_node_plan"] = PLAN
    assert ours["HF_HUB_OFFLINE"] == "1" and "MINOS_PACKAGES" not in ours


def test_a_node_that_is_off_is_said_in_the_document_too(texts, tmp_path, monkeypatch):
    said, file = [], tmp_path / "print.json"
    monkeypatch.setattr(show_command, "Display", lambda: SimpleNamespace(display=said.append))
    monkeypatch.setattr(show_command.ActionBase, "run", lambda *_: {})
    module = show_command.ActionModule.__new__(show_command.ActionModule)
    arguments = {"job": "demo", "user": "minos", "planned": False, "output": str(file)}
    nodes = {"node2": texts, "node3": {"problem": "it does not answer: switch it on"}}
    module._task = SimpleNamespace(args=arguments | {"nodes": nodes})
    module.run()
    assert "# node3: it does not answer: switch it on\n" in said
    written = json.loads(file.read_text())
    assert list(written["nodes"]) == ["node2"] and list(written["no_answer"]) == ["node3"]
    module._task.args["nodes"] = {"node3": nodes["node3"]}
    with pytest.raises(AnsibleActionFail, match="there is no job 'demo'"):
        module.run()
