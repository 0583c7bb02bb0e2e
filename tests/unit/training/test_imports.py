"""What a worker does while it starts."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import gc
began = sum(generation["collections"] for generation in gc.get_stats())
import training.finetune
print(sum(generation["collections"] for generation in gc.get_stats()) - began, gc.get_freeze_count(), gc.isenabled())
"""


def test_nothing_is_collected_while_a_worker_imports_and_what_it_imported_is_never_looked_through():
    said = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True).stdout
    collected, frozen, on = said.split()
    assert int(collected) <= 3, "before the first line of ours, and where torch asks for it"
    assert int(frozen) > 100_000 and on == "True"
