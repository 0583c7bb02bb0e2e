"""Save and restore the state of a training run; README.md here has the example."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from training.checkpoints import ranks
from training.checkpoints.restoring import CheckpointError, Restored, Restoring, Stateful
from training.checkpoints.snapshot import NoMemory, Snapshot
from training.files import write_atomically
from training.storage.child import Child
from training.storage.share import Share
from training.storage.steps import Steps

ORIGIN = "origin"  # the file that tells one run's checkpoints from those of another under the same name


class Checkpoints:
    """The checkpoints of one run under `directory`, of which the newest `keep` valid ones stay.

    Every rank makes one and calls the same methods. A save costs the training loop one copy into this machine's
    memory; a process beside it writes. With `local_dir`, on this machine's own disk, it writes there, and the newest
    checkpoint follows to `directory`, on the shared directory, whenever that answers (through `share`, if the run
    has one). A full disk or a hanging share ends nothing: a line says it, and `alarm` until it is over.
    """

    def __init__(
        self, directory: Path | str, *, local_dir: Path | str | None = None, keep: int = 2, share: Share | None = None
    ) -> None:
        if keep < 2:
            raise ValueError(f"keep: {keep} cannot be used; write 2 or more: one may be damaged")
        self.directory, self.keep = Path(directory).absolute(), keep
        self.local_dir = Path(local_dir).absolute() if local_dir else None
        self.newest: Path | None = None
        """The newest checkpoint that this process has written completely."""
        self._own_share = Share(self.directory.parent) if local_dir and share is None else None
        self._share = share or self._own_share
        self._alarm, self._origin = "", ""
        self._snapshot: Snapshot | None = None
        self._writer: Child | None = None
        self._writing: int | None = None
        self._complete = True  # whether the last save has reached the disk
        self._heard = threading.Condition()
        self._closed = False

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alarm(self) -> str:
        """Why the last save is not where it belongs, or what is wrong with the share; empty: nothing."""
        return "; ".join(filter(None, (self._alarm, self._share.alarm if self._share else "")))

    def restore(self, statefuls: Mapping[str, Stateful]) -> Restored | None:
        """Load the newest valid checkpoint that any rank can see into `statefuls`; None if there is none.

        Collective: all ranks call it, and all load the same bits, those whose machine has no copy over the network.
        Invalid ones are skipped with a line. Errors: CheckpointError on every rank when it does not fit `statefuls`.
        """
        self._origin = ranks.tell(self._read_origin() if ranks.rank() == 0 else None, source=0)
        places = {"shared": Steps(self.directory)}
        if self.local_dir is not None:
            places["local"] = Steps(self._target())
        search = Restoring(places)
        restored = search.restore(statefuls)
        # One that this rank could not use may be called the same on the machine of the rank whose copy was good.
        if restored and ranks.rank() == 0 and restored.path not in search.refused:
            self._bring(restored)
        return restored

    def save(
        self,
        step: int,
        statefuls: Mapping[str, Stateful],
        *,
        epoch: int = 0,
        extra: Mapping[str, object] | None = None,
        wait: bool = False,
    ) -> bool:
        """Save the state as it is after `step` steps, with `epoch` and `extra` (anything that JSON can hold).

        Every rank may call it; rank 0 works, the others return True at once. True on rank 0: the state is copied,
        and with `wait` (before leaving) complete on disk. False: skipped, because the one before is still being
        written, or failed; a line says which. Errors: CheckpointError for a state that could not be read again.
        """
        if ranks.rank() != 0:
            return True
        if self._writing is not None and not wait:
            print(f"checkpoint of step {step} skipped: step {self._writing} is still being written", flush=True)
            return False
        self._written()
        progress = {"step": step, "epoch": epoch, "extra": dict(extra or {})}
        try:
            self._snapshot = self._snapshot or Snapshot()
            files = self._snapshot.take({name: each.state_dict() for name, each in statefuls.items()}, progress)
        except OSError as error:  # NoMemory among them, and what a limit of memory or files makes the kernel say
            self._complain(str(error) if isinstance(error, NoMemory) else f"no checkpoint of step {step}: {error}")
            return False
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"step {step} cannot be saved: {error}") from None
        with self._heard:
            try:
                self._writer = self._writer or self._start_writer()
            except OSError as error:  # no more processes, or no memory for one
                self._complain(f"no checkpoint of step {step}: {error}")
                return False
            self._writing, self._complete = step, False
            self._writer.tell("save", {"step": step, "files": files})
        return self._written() if wait else True

    def close(self, timeout: float = 300.0) -> bool:
        """Wait until what was saved is on disk, and on the shared directory if that answers within `timeout` seconds.

        Returns whether it is.
        """
        written = self._written(timeout)
        self._closed = True
        if self._writer is not None:
            self._writer.close(timeout)
        if self._snapshot is not None:
            self._snapshot.close()
        self._snapshot = None
        arrived = self._own_share.close(timeout) if self._own_share else True
        return written and arrived

    def _written(self, timeout: float = math.inf) -> bool:
        """Wait for the writer; returns whether the last save is on disk."""
        deadline = time.monotonic() + timeout
        with self._heard:
            while not self._heard.wait_for(lambda: self._writing is None, min(30, deadline - time.monotonic())):
                print(f"waiting for the checkpoint of step {self._writing} in {self._target()}", flush=True)
                if time.monotonic() > deadline:
                    return False
            return self._complete

    def _start_writer(self) -> Child:
        arguments = (str(self._snapshot.file), str(self._target()), str(self.keep))
        return Child("training.storage.writer", *arguments, hear=self._hear, keep_open=[self._snapshot.file])

    def _hear(self, message: dict) -> None:
        """One answer of the writer, in a thread of its own."""
        with self._heard:
            if "saved" in message:
                self._complete = True
                self.newest = Steps(self._target()).path(message["saved"])
                self._announce(self.newest)
                self._complain(message["note"], over=f"checkpoint {self.newest} is written")
            if "failed" in message:
                self._complain(f"no checkpoint of step {message['failed']}: {message['reason']}; training goes on")
            if "ended" in message:
                self._writer = None
                if not self._closed:
                    lost = "" if self._writing is None else f", no checkpoint of step {self._writing}"
                    what = f"the checkpoint writer has ended (status {message['ended']}){lost}"
                    self._complain(f"{what}; the next save starts a new one")
            self._writing = None
            self._heard.notify_all()

    def _announce(self, path: Path) -> None:
        """A complete one: on to the shared directory with it, or into the job's state if it is there."""
        if self.local_dir is not None:
            self._share.push(path, self.directory, self.keep)
        elif self._share is not None:
            self._share.state(checkpoint=str(path))

    def _bring(self, restored: Restored) -> None:
        """To the shared directory with it, where the start that wrote it here ended before it had arrived."""
        here = restored.path.parent == self._target() != self.directory and restored.path.exists()
        if here and not (self.directory / restored.path.name).exists():
            self._announce(restored.path)

    def _complain(self, alarm: str, over: str = "") -> None:
        """Print an alarm that is new, or that it is over."""
        if alarm and alarm != self._alarm:
            print(f"alarm: {alarm}", flush=True)
        elif self._alarm and not alarm:
            print(over, flush=True)
        self._alarm = alarm

    def _target(self) -> Path:
        """Where the writer writes."""
        self._origin = self._origin or self._read_origin()
        return self.local_dir / self._origin if self.local_dir is not None else self.directory

    def _read_origin(self) -> str:
        """The name of this run's life, made at its first start: local checkpoints of a run that was deleted and
        begun anew under the same name do not count."""
        file = self.directory / ORIGIN
        if not file.exists():
            write_atomically(file, secrets.token_hex(6) + "\n")
        return file.read_text(encoding="utf-8").strip()
