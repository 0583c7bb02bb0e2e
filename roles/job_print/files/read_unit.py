"""Read what train.yml has written of a job on this machine; prints one JSON object. Changes nothing. Only Python's own
library.

Its argument is a JSON object: job. The answer: unit, settings and rendezvous (of the unit that is at work), each the
text of a file, empty where there is none.
"""

import json
import sys
from pathlib import Path


def main():
    job = json.loads(sys.argv[1])["job"]
    files = {
        "unit": "/etc/systemd/system/minos-train@.service",
        "settings": f"/etc/minos/jobs/{job}.env",
        "rendezvous": f"/run/minos-train-{job}/rendezvous.env",
    }
    texts = {}
    for name, file in files.items():
        try:
            texts[name] = Path(file).read_text(encoding="utf-8")
        except OSError:
            texts[name] = ""
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
