"""job_state: which jobs take other settings under their name."""

import base64
import json

import pytest
from rendering import asserted

SCRIPT, TRAINED = {"recipe": "script"}, {"recipe": "finetune"}
OWN = {"script": "mine.py"}


def taken(plan: dict, **content: object) -> bool:
    """Whether the same name with other settings is let through by both refusals."""
    text = json.dumps({"config_sha256": "old"} | content)
    told = {
        "job_state_plan": {"job": "demo", "shared": "/srv/minos/jobs/demo", "config_sha256": "new"} | plan,
        "__job_state_file": {"content": base64.b64encode(text.encode()).decode()},
    }
    names = ("Refuse to go on with another script", "Refuse to go on with other settings")
    return all(asserted("job_state", "main", name, **told) for name in names)


@pytest.mark.parametrize(
    ("plan", "content", "lets"),
    [
        (TRAINED, {"state": "failed", "step": 0}, True),
        (TRAINED, {"state": "failed"}, True),
        (TRAINED, {"state": "failed", "step": 3}, False),
        (TRAINED, {"state": "failed", "step": 0, "furthest_step": 3}, False),
        (TRAINED, {"state": "failed", "step": 0, "checkpoint": "/srv/minos/x"}, False),
        (TRAINED, {"state": "stopped", "step": 0}, False),
        (TRAINED, {"state": "starting"}, False),
        (TRAINED, {"state": "done", "step": 90}, False),
        (TRAINED, {"state": "done", "step": 90, "config_sha256": "new"}, True),
        (TRAINED, {"state": "failed"} | OWN, False),
        (SCRIPT, {"state": "failed"} | OWN, True),
        (SCRIPT, {"state": "stopped"} | OWN, True),
        (SCRIPT, {"state": "running"} | OWN, False),
        (SCRIPT, {"state": "failed"}, False),
    ],
    ids=str,
)
def test_other_settings_under_the_same_name(plan, content, lets):
    """Where nothing would be lost or mixed: a script may be mended, settings until a step was made with them."""
    assert taken(plan, **content) is lets
