"""Where the project is, and how its plugins are loaded without Ansible's plugin loader."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted([ROOT / "site.yml", ROOT / "train.yml", *(ROOT / "playbooks").glob("*.yml")])


def action_plugin(role: str, name: str) -> ModuleType:
    """Load roles/<role>/action_plugins/<name>.py as a module."""
    file = ROOT / "roles" / role / "action_plugins" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
