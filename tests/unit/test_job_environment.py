"""The environment of a job on one node: what its cards need, and what is said only when asked for."""

from __future__ import annotations

import pytest
from ansible.template import trust_as_template
from paths import ROOT
from rendering import evaluated, shared, templar

FOUND = {"gpus": 2, "cores": 8, "interface": "lan0", "runs": False}
PLAN = {"job": "demo", "recipe": "finetune", "nodes": ["node1"], "run_id": "demo-1", "code": {"path": "/code"}}
PLAN |= {"nnodes_min": 1, "node_grace": 60}
DEBUGGING = {"NCCL_DEBUG": "INFO", "NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1", "TORCH_DISTRIBUTED_DEBUG": "INFO"}


def environment(*cards, **options):
    values = {
        "job_node_found": {**FOUND, "cards": list(cards)},
        "job_node_plan": PLAN,
        "inventory_hostname": "node1",
        "cluster_proxy_env": {},
    }
    text = "#jinja2: trim_blocks: True\n" + (ROOT / "templates/job.env.j2").read_text()
    rendered = templar("job_node", **values | options).template(trust_as_template(text))
    return dict(line.split("=", 1) for line in rendered.splitlines() if "=" in line and not line.startswith("#"))


def test_nothing_of_it_without_need():
    assert not set(DEBUGGING) & set(environment())
    assert environment()["NCCL_SOCKET_IFNAME"] == "=lan0", "not lan01 as well"


def test_the_cards_that_must_be_there():
    assert environment()["MINOS_GPUS"] == "2"
    assert environment(job_node_plan=PLAN | {"backend": "gloo"})["MINOS_GPUS"] == "0"
    assert environment(job_node_cpu_only=True)["MINOS_GPUS"] == "0", "that torch uses none"
    hosts = {"node1": "10.0.0.1"}
    assert shared("job_node_cpu_only", "node1", hosts, {}, python_env_variant="cpu") is True
    assert shared("job_node_cpu_only", "node1", hosts, {}) is False


def test_what_the_cards_need():
    assert environment("NCCL_P2P_DISABLE=1")["NCCL_P2P_DISABLE"] == "1"
    assert "NCCL_DEBUG" not in environment("NCCL_P2P_DISABLE=1")


@pytest.mark.parametrize("given", [True, "true", "True"])
def test_debugging_when_it_is_asked_for(given):
    assert DEBUGGING.items() <= environment(job_node_nccl_debug=given).items()


@pytest.mark.parametrize("given", [True, "true"])
def test_ranks_may_have_different_drivers_where_their_owner_wants_it(given):
    assert environment(job_node_any_driver=given)["MINOS_ANY_DRIVER"] == "1"
    assert "MINOS_ANY_DRIVER" not in environment()
    assert "MINOS_ANY_DRIVER" not in environment(job_node_any_driver="false")
    hosts = {"node1": "10.0.0.1"}
    assert shared("job_node_any_driver", "node1", hosts, {}) is False
    assert shared("job_node_any_driver", "node1", hosts, {}, nvidia_equal_versions="false") is True
    assert shared("parity_any_driver", "node1", hosts, {}, nvidia_equal_versions=False) is True


def test_the_shared_variable_reaches_the_role():
    assert evaluated("job_node", "job_node_nccl_debug") is False
