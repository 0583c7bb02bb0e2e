"""Drawing while the training goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("plot.py")
PATIENCE = 120  # seconds for the picture at the end


class Plotter:
    """Draws the picture of a run in a process of its own, the least urgent one of the machine."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def draw(self, metrics: Path, output: Path, title: str, *, wait: bool) -> None:
        """Begin a new picture, unless one is being drawn; with `wait` it is there in the end.

        What hinders it is printed; nothing is raised.
        """
        if self._process is not None and not wait and self._process.poll() is None:
            return
        self._finish()
        # By its path: with `-m` the package around it would be imported, and torch with it. -P: the modules beside it
        # must not hide those of the standard library.
        command = ["nice", "-n", "19", sys.executable, "-P", str(PROGRAM), str(metrics), str(output)]
        try:
            self._process = subprocess.Popen(
                [*command, f"--title={title}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the training
            )
        except OSError as error:
            print(f"plot: {error}", flush=True)
        if wait:
            self._finish()

    def _finish(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            _, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            errors = f"not drawn within {PATIENCE} s"
        if process.returncode != 0:
            print(f"plot: {(errors.strip().splitlines() or ['failed'])[-1]}", flush=True)
