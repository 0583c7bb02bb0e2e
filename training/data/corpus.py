"""Packed data where this machine's processes read them: made or copied once per node, believed only by their hashes."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from training.config import Config
from training.data.copies import alone, copy, discard, out_of_sight, problem_of, remember
from training.data.formats import refuse_bad
from training.data.packed import Corpus, open_corpus, read_manifest
from training.data.rows import DataError
from training.data.sources import find_sources
from training.data.write import write
from training.files import sha256_of

FORMAT = 1  # raise it when the same data shall give other packed files
SETTINGS = (
    *("data_format", "instruction_field", "input_field", "response_field", "messages_field", "text_field"),
    *("prompt_template", "seq_len", "packing"),
)


def prepare(config: Config, tokenizer, directory: Path) -> Path:
    """Make or find the packed data of `config` under `directory`; returns `directory`/packed-<fingerprint>.

    The name follows from the contents of the data files, the tokenizer and the settings that matter, so data that are
    there already are used again (after a look at their hashes). Several processes may call this at once.
    Errors: DataError.
    """
    sources = find_sources(config)
    try:
        contents = [[source.kind, *source.contents()] for source in sources if source]
        identity = {"format": FORMAT, "contents": contents, **_identity(config, tokenizer)}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        place = directory / f"packed-{fingerprint[:12]}"
        with alone(directory):
            if place.exists():
                problem = problem_of(place, directory)
                if problem is None:
                    _refuse_bad(place, config)
                    return place
                discard(place, f"{problem}; it is made again")
            with out_of_sight(place) as temporary:
                write(sources, config, tokenizer, temporary, {"fingerprint": fingerprint, **identity})
            remember(place, directory)
    except OSError as error:
        raise _failed(directory, error) from None
    facts = read_manifest(place)["train"]
    print(f"packed: {facts['rows']:,} rows, {facts['tokens']:,} tokens, {facts['fill']:.1%} full: {place}", flush=True)
    return place


def obtain(config: Config, tokenizer, *, prepared: Path | None, local_dir: Path) -> Corpus:
    """The rows that this process trains on; the other ranks wait for the slowest (`timeout_start`).

    `prepared` is a packed directory: it is copied to `local_dir` once per node (read in place if `data_from_share`) and
    checked. Without it the data are made under `local_dir`. `tokenizer` may be None where `prepared` is given; it is
    not compared then.
    Errors: DataError (data that are damaged or belong to other settings, a full disk, what `prepare` raises).
    """
    if prepared is None:
        return open_corpus(prepare(config, tokenizer, local_dir), config.heldout_rows)
    place = prepared
    try:
        _require_same(place, config, tokenizer)
        _refuse_bad(place, config)
        with alone(local_dir):
            local = local_dir / place.name
            if config.data_from_share or local.resolve() == place.resolve():
                if problem := problem_of(place, local_dir):
                    raise DataError(f"{place}: {problem}; run `python -m training.prepare` again")
                return open_corpus(place, config.heldout_rows)
            if local.exists():
                problem = problem_of(local, local_dir, like=place)
                if problem is None:
                    return open_corpus(local, config.heldout_rows)
                discard(local, f"{problem}; it is copied again")
            copy(place, local)
            remember(local, local_dir)
    except OSError as error:
        raise _failed(local_dir, error) from None
    return open_corpus(local, config.heldout_rows)


def described(manifest: dict[str, object], config: Config) -> str:
    """What the packed data are, in lines for people."""
    train, heldout, sources = manifest["train"], manifest["heldout"], manifest["sources"]
    # Those that an older version has packed do not say how many were cut.
    bad, without_answer, cut = (sum(facts.get(key, 0) for facts in sources) for key in ("bad", "without_answer", "cut"))
    return (
        f"training rows: {train['rows']:,} of up to {config.seq_len} tokens, {train['fill']:.1%} full\n"
        f"training documents: {train['documents']:,}, tokens: {train['tokens']:,}, in the loss: {train['counted']:,}\n"
        f"held-out documents: {heldout['documents']:,}, tokens: {heldout['tokens']:,}\n"
        f"left out: {bad:,} bad rows, {without_answer:,} rows without room for an answer; cut: {cut:,} rows"
    )


def _identity(config: Config, tokenizer) -> dict[str, object]:
    return {
        "settings": {key: getattr(config, key) for key in SETTINGS},
        "tokenizer": tokenizer_sha256(tokenizer) if tokenizer else None,
    }


def tokenizer_sha256(tokenizer) -> str:
    """Hex SHA-256 of all that decides which tokens a text becomes; wherever the tokenizer was loaded from."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    else:
        with tempfile.TemporaryDirectory() as directory:
            files = [sha256_of(Path(name)) for name in tokenizer.save_vocabulary(directory)]
        state = [type(tokenizer).__name__, tokenizer.get_vocab(), files]
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template, tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps([state, marks], sort_keys=True, default=str).encode()).hexdigest()


def _require_same(place: Path, config: Config, tokenizer) -> None:
    """DataError when the packed data were made with other settings or another tokenizer than this run has."""
    manifest, fix = read_manifest(place), "run `python -m training.prepare` with this config"
    if manifest["format"] != FORMAT:
        raise DataError(f"{place}: has format {manifest['format']}, this version reads {FORMAT}; {fix}")
    now = _identity(config, tokenizer)
    for key, value in now["settings"].items():
        before = manifest["settings"].get(key)
        if before != value:
            raise DataError(f"{place}: was packed with {key} {before!r}, now it is {value!r}; {fix}")
    if now["tokenizer"] not in (None, manifest["tokenizer"]):
        raise DataError(
            f"{place}: was packed with another tokenizer than that of {config.tokenizer or config.model}; {fix}"
        )


def _refuse_bad(place: Path, config: Config) -> None:
    for facts in read_manifest(place)["sources"]:
        refuse_bad(facts, config.bad_rows)


def _failed(directory: Path, error: OSError) -> DataError:
    where, problem = error.filename or directory, error.strerror or error
    return DataError(f"{where}: {problem} (packed data in {directory}); free space there or correct rights and path")
