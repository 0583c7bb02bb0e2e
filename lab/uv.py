"""Run uv with this machine's pip settings: `python3 -m lab.uv ARGUMENTS`.

uv does not read pip's configuration, so whoever has an index, a folder of wheels or a certificate bundle set up for
pip would have to write all of it twice.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lab import hostsettings

UV = Path(__file__).parents[1] / ".venv-uv" / "bin" / "uv"
# PyPI's torch for Linux brings gigabytes of CUDA; the CPU builds are listed here and nowhere else.
TORCH_CPU = "https://download.pytorch.org/whl/cpu/torch/"


def environment(settings: hostsettings.HostSettings, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return `inherited` with uv's variables for what pip is told here; a variable of uv that is set stays."""
    variables = {
        "UV_FIND_LINKS": ",".join(settings.find_links or [TORCH_CPU]),
        "UV_DEFAULT_INDEX": settings.index_url,
        "UV_INDEX": " ".join(settings.extra_index_urls),
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip looks at them; the locks' hashes say which file is meant
        "SSL_CERT_FILE": settings.ca_bundle,
        "UV_LINK_MODE": "copy",
    }
    return {**{name: value for name, value in variables.items() if value}, **inherited}


def main() -> None:
    settings = hostsettings.gather(dict(os.environ), Path.home())
    os.execve(UV, [str(UV), *sys.argv[1:]], environment(settings, os.environ))


if __name__ == "__main__":
    main()
