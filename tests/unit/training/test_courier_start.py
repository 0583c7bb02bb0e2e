"""When a run has a courier: not before there is something to say, and later where a limit allows none for now."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from training.checkpoints import Checkpoints, Share
from training.state import JobState


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job directory whose state has begun."""
    directory = tmp_path / "job"
    JobState(directory).begin(state="running", step=0)
    return directory


def test_who_has_nothing_to_say_does_not_wait_for_the_share(tmp_path):
    """The ranks other than 0 of a script of one's own: no process for each of them, at a share that may hang."""
    with Checkpoints(tmp_path / "no job/checkpoints", local_dir=tmp_path / "local") as checkpoints:
        pass
    assert checkpoints._own_share._courier is None
    assert checkpoints._own_share.close(0.1), "nothing was on its way"


def no_process(*_: object, **__: object) -> None:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("limited", "refuse"), [("child.subprocess.Popen", no_process), ("child.threading.Thread.start", no_thread)]
)
def test_a_courier_that_cannot_be_started_is_an_alarm_and_all_arrives_later(
    limited, refuse, job, tmp_path, monkeypatch, capsys
):
    share = Share(job, tmp_path / "local")
    with monkeypatch.context() as limit:
        limit.setattr(f"training.storage.{limited}", refuse)
        share.watch()
        share.state(step=7)
        with pytest.raises(TypeError):
            share.state(step=object())
        assert not share.drain(0.1)
        assert "its courier cannot be started ([Errno 11]" in share.alarm
    with Checkpoints(job / "checkpoints", local_dir=tmp_path / "local/checkpoints", share=share) as checkpoints:
        assert checkpoints.save(1, {"model": torch.nn.Linear(3, 3)}, wait=True)
        assert checkpoints.save(2, {"model": torch.nn.Linear(3, 3)}, wait=True)
    assert share.close(10) and share.alarm == ""
    state = JobState(job).read()
    assert (state["step"], state["checkpoint"]) == (7, str(job / "checkpoints/step-00000002"))
    said = capsys.readouterr().out
    assert (said.count("alarm: "), said.count("is at work")) == (1, 1)


@pytest.mark.timeout(60)
def test_a_save_comes_back_while_no_courier_can_be_started(job, tmp_path, monkeypatch):
    share = Share(job, tmp_path / "local")
    with Checkpoints(job / "checkpoints", local_dir=tmp_path / "local/checkpoints", share=share) as checkpoints:
        with monkeypatch.context() as limit:
            limit.setattr("training.storage.share.Child", no_process)
            for step in (1, 2):
                assert checkpoints.save(step, {"model": torch.nn.Linear(3, 3)}, wait=True)
            assert "cannot be started" in checkpoints.alarm
        assert share.drain(10)
    assert share.close(10) and (job / "checkpoints/step-00000002/manifest.json").exists()
