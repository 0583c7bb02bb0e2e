"""Before the job: fetch the model once, tokenise and pack the data once, for all nodes.

    python -m training.prepare --config FILE --output DIR [--models DIR] [key=value ...]

writes the packed data below DIR and says in DIR/prepared.json where they are; the training nodes copy them from there
(`--prepared DIR` of `training.finetune`). A model or tokenizer that is a hub id is downloaded to --models (default
DIR/models), which several jobs may share. A second call with the same data, tokenizer and settings finds all that and
ends with a line that begins with `unchanged`. Exit status 2 with one line when something cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from training.config import Config, ConfigError, load
from training.data import DataError, described, prepare, read_manifest
from training.files import write_atomically
from training.folders import PREPARED
from training.models import ModelError, load_tokenizer
from training.models.fetch import fetch


def prepared(config: Config, output: Path, models: Path) -> dict[str, object]:
    """Do all of it; returns the content of prepared.json. Errors: ModelError, DataError, OSError."""
    fetched = fetch(config, models)
    place = prepare(config, load_tokenizer(fetched), output)
    manifest = read_manifest(place)
    bad = sum(facts["bad"] for facts in manifest["sources"])
    facts = {"packed": place.name, "fingerprint": manifest["fingerprint"], **manifest["train"], "bad_rows": bad}
    facts["config_sha256"] = config.sha256()
    facts["heldout_documents"] = manifest["heldout"]["documents"]
    # Only what was fetched: the other names in the config mean the same on every node.
    facts |= {key: path for key in ("model", "tokenizer") if (path := getattr(fetched, key)) != getattr(config, key)}
    print(described(manifest, config), flush=True)
    return facts


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="YAML file, see training/configs")
    parser.add_argument("--output", required=True, type=Path, help="packed data and prepared.json")
    parser.add_argument("--models", type=Path, help="where models of the hub lie; default OUTPUT/models")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the file")
    options = parser.parse_intermixed_args(arguments)
    output = options.output.resolve()
    try:
        config = load(options.config, options.overrides)
        if config.recipe != "finetune":
            print(f"unchanged: recipe {config.recipe} needs no data")
            return 0
        facts = prepared(config, output, (options.models or output / "models").resolve())
        text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
        file = output / PREPARED
        unchanged = file.exists() and file.read_bytes() == text.encode()
        if not unchanged:
            write_atomically(file, text)
    except (ConfigError, DataError, ModelError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    print(f"{'unchanged' if unchanged else 'prepared'}: {output / facts['packed']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
