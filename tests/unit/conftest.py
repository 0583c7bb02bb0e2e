"""Both torch and Ansible are loaded here, in this order: Ansible replaces sys.intern, which torch._dynamo refuses."""

import torch._dynamo  # noqa: F401
