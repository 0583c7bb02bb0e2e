#!/usr/bin/env python3
"""The lab's nodes as an Ansible inventory: `ansible-playbook -i inventory/lab site.yml`."""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.cli import main  # noqa: E402

sys.exit(main(["inventory"]))
