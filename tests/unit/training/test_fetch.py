"""The real client of huggingface_hub, in a process of its own, against a hub on 127.0.0.1 (see hub.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.training.hub import COMMIT, Hub, Model, facts_of, git_hash, sha256
from training.files import sha256_of

ROOT = Path(__file__).parents[3]
NAME = "meta-llama/Tiny-hf"
# What the names mean and nothing else: the package's own __init__ would load torch, which fetching does not need.
CLIENT = """
import sys, types
from pathlib import Path
package = types.ModuleType("training.models")
package.__path__ = [str(Path.cwd() / "training/models")]
sys.modules["training.models"] = package
from training.config import Config
from training.models import fetch
from training.models.errors import ModelError
directory, *settings = sys.argv[1:]
config = Config(data_train="a.jsonl", **dict(setting.split("=") for setting in settings))
try:
    found = fetch.fetch(config, Path(directory))
except ModelError as error:
    sys.exit(str(error))
print("model=" + found.model, "tokenizer=" + found.tokenizer)
"""
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"[" + b"1," * 900 + b"1]",
    "tokenizer_config.json": b"{}",
    "LICENSE.txt": b"free",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle" * 300,
    "modeling_tiny.py": b"import os",
    "README.md": b"# Tiny",
    "original/consolidated.00.pth": b"pickle" * 300,
    "original/tokenizer.model": b"x",
}
KEPT = ["LICENSE.txt", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
KEPT = [*KEPT, "tokenizer_config.json"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    server.models[NAME] = Model(dict(FILES))
    yield server
    server.close()


@pytest.fixture
def client(hub, tmp_path):
    """client(model=NAME) is the finished process; `token=`, `wait=False` and `endpoint=` as they say."""

    def run(*, token: str = "", wait: bool = True, endpoint: str = "", **config: str):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": endpoint or hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_TOKEN": token} if token else {}
        settings = [f"{key}={value}" for key, value in config.items()]
        command = [sys.executable, "-c", CLIENT, str(tmp_path / "models"), *settings]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        if not wait:
            return process
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


def failed(done: subprocess.CompletedProcess) -> str:
    """The one line that the client ended with."""
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(("model: ", "tokenizer: "))
    return line


def test_fetched_once_verified_and_then_without_any_network(hub, client, tmp_path):
    done = client(model=NAME)
    place = tmp_path / "models/meta-llama--Tiny-hf"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"model={place} tokenizer="
    assert done.stdout.splitlines()[0] == f"model {NAME}: 6 files, 0.00 GB, commit {COMMIT[:12]}, fetched"
    assert sorted(path.name for path in place.iterdir()) == sorted([*KEPT, "manifest.json"])  # no pickle, no code
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o644}
    manifest = json.loads((place / "manifest.json").read_text())
    assert (manifest["name"], manifest["commit"]) == (NAME, COMMIT)
    assert {name: facts["sha256"] for name, facts in manifest["files"].items()} == {
        name: sha256(FILES[name]) for name in KEPT
    }
    hub.requests.clear()
    again = client(model=NAME)
    assert again.stdout.splitlines()[0].endswith("unchanged")
    assert hub.requests == []


def test_a_tokenizer_alone_comes_without_weights_unless_the_model_is_there(hub, client, tmp_path):
    done = client(model="scratch", tokenizer=NAME)
    place = tmp_path / "models/meta-llama--Tiny-hf--tokenizer"
    assert done.stdout.splitlines()[-1] == f"model=scratch tokenizer={place}", done.stderr
    assert not (place / "model.safetensors").exists()
    both = client(model=NAME, tokenizer=NAME)
    whole = tmp_path / "models/meta-llama--Tiny-hf"
    assert both.stdout.splitlines()[-1] == f"model={whole} tokenizer={whole}"


def test_what_needs_no_hub_stays_as_it_is(hub, client, tmp_path):
    (tmp_path / "own").mkdir()
    for model, tokenizer in (("scratch", "bytes"), (str(tmp_path / "own"), ""), ("/not/here", "")):
        done = client(model=model, tokenizer=tokenizer)
        assert done.stdout == f"model={model} tokenizer={tokenizer}\n"
    assert hub.requests == []


@pytest.mark.parametrize("damage", ["cut", "changed", "no manifest"])
def test_a_damaged_directory_is_mended_to_the_same_commit(damage, hub, client, tmp_path):
    client(model=NAME)
    place = tmp_path / "models/meta-llama--Tiny-hf"
    weights = place / "model.safetensors"
    if damage == "cut":
        os.truncate(weights, 100)
    elif damage == "changed":
        weights.write_bytes(b"\1" + WEIGHTS[1:])
    else:
        (place / "manifest.json").unlink()
    hub.requests.clear()
    assert client(model=NAME).stdout.splitlines()[0].endswith("fetched")
    assert sha256_of(weights) == sha256(WEIGHTS)
    asked = {path for method, path, _ in hub.requests if method == "GET"}
    if damage != "no manifest":
        assert f"/api/models/{NAME}/revision/{COMMIT}" in asked
        assert not any(path.endswith("/tokenizer.json") for path in asked)  # large and in order


def test_a_new_time_of_change_alone_costs_one_look(hub, client, tmp_path):
    client(model=NAME)
    place = tmp_path / "models/meta-llama--Tiny-hf"
    os.utime(place / "model.safetensors", (1, 1))
    assert client(model=NAME).stdout.splitlines()[0].endswith("unchanged")
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"]["changed_ns"] == 10**9


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_content_that_is_not_what_the_hub_states_never_shows_up(file, hub, client, tmp_path):
    hub.models[NAME].damaged = {file}
    line = failed(client(model=NAME))
    assert line == f"model: {NAME}: {file} did not arrive as the hub states; start again, the rest is kept"
    assert not (tmp_path / "models/meta-llama--Tiny-hf").exists()
    hub.models[NAME].damaged, hub.requests = set(), []
    assert client(model=NAME).returncode == 0
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/api/" not in path}
    assert fetched == {file}


def test_a_broken_connection_is_taken_up_where_it_ended(hub, client, tmp_path):
    mega = 1 << 20
    weights = os.urandom(mega) * 24
    hub.models[NAME] = Model(FILES | {"model.safetensors": weights}, stall_after=22 * mega)
    hub.go_on.set()
    assert client(model=NAME).returncode == 0
    assert sha256_of(tmp_path / "models/meta-llama--Tiny-hf/model.safetensors") == sha256(weights)
    ranges = [wanted for _, path, wanted in hub.requests if path.endswith("/model.safetensors") and wanted]
    assert ranges
    assert int(ranges[-1].removeprefix("bytes=").removesuffix("-")) >= 20 * mega


def test_after_a_kill_whole_files_are_kept_and_pieces_are_cleared_away(hub, client, tmp_path):
    hub.models[NAME] = Model(FILES | {"model.safetensors": os.urandom(1 << 20) * 12}, stall_after=11 << 20)
    process = client(wait=False, model=NAME)
    place = tmp_path / "models/meta-llama--Tiny-hf"
    partial = place.with_name(f".{place.name}.partial")
    assert hub.stalled.wait(60)
    deadline = time.monotonic() + 60
    pieces = []
    while not (pieces and (partial / "tokenizer.json").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        pieces = [file for file in partial.rglob("*.incomplete") if file.stat().st_size >= 10 << 20]
    process.kill()
    process.communicate()
    hub.go_on.set()
    assert not place.exists()

    hub.models[NAME].gated = True  # so that this attempt ends before it is complete
    failed(client(model=NAME))
    assert not any(piece.exists() for piece in pieces)
    hub.models[NAME].gated, hub.models[NAME].stall_after, hub.requests = False, None, []
    assert client(model=NAME).returncode == 0
    assert not any(path.endswith("/tokenizer.json") for method, path, _ in hub.requests if method == "GET")
    assert not partial.exists()


def test_two_at_once_download_once(hub, client):
    processes = [client(wait=False, model=NAME) for _ in range(2)]
    lines = sorted(process.communicate(timeout=60)[0].splitlines()[0].rpartition(", ")[2] for process in processes)
    assert lines == ["fetched", "unchanged"]
    assert sum(path.endswith("/model.safetensors") and method == "GET" for method, path, _ in hub.requests) <= 2


PAGE = f"accept its licence at https://huggingface.co/{NAME}"


@pytest.mark.parametrize(
    ("token", "gated", "name", "expected"),
    [
        (
            "",
            True,
            NAME,
            f"{NAME} is gated; {PAGE} and set HF_TOKEN in the environment (for train.yml: ",
        ),
        ("stranger-token", True, NAME, f"{NAME} is gated, and the owner of the token has no access; {PAGE}"),
        ("wrong-token", True, NAME, f"the hub refuses the token for {NAME}; write a valid one into HF_TOKEN"),
        (
            "",
            False,
            "meta-lama/Tiny-hf",
            "the hub knows no model meta-lama/Tiny-hf; mind the spelling, or it ",
        ),
        ("good-token", False, "meta-lama/Tiny-hf", "the hub knows no model meta-lama/Tiny-hf; mind the spelling"),
        ("", False, "a/b/c", "a/b/c is neither a directory nor a hub id; write the path of a Hugging Face directory"),
    ],
)
def test_no_access_is_one_line_with_the_fix(token, gated, name, expected, hub, client):
    hub.models[NAME].gated = gated
    done = client(token=token, model=name)
    assert failed(done).startswith(f"model: {expected}")
    assert not token or token not in done.stderr + done.stdout


def test_a_token_opens_a_gated_model_and_is_written_nowhere(hub, client, tmp_path):
    hub.models[NAME].gated = True
    assert client(token="good-token", model=NAME).returncode == 0
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"good-token" not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"config.json": b"{}", "pytorch_model.bin": b"x"},
            "only pickled weights, which run code when they are ",
        ),
        ({"config.json": b"{}"}, "no weights that we read; choose a model that has model.safetensors"),
        (
            {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"},
            "holds adapters only; write the id of a ",
        ),
        ({"config.json": b"{}", "model.safetensors.index.json": b"{}"}, "no weights that we read; choose a model"),
        ({"model.gguf": b"x"}, "has no config.json; write the id of a whole model in the Hugging Face format"),
    ],
)
def test_models_that_cannot_be_used_are_refused_before_the_download(files, expected, hub, client):
    hub.models[NAME].files = files
    assert expected in failed(client(model=NAME))
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_shards_are_taken_in_one_form(hub, client, tmp_path):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["consolidated.safetensors", "onnx/model.safetensors", "tokenizers/tokenizer.json"]
    hub.models[NAME].files = {name: name.encode() * 100 for name in [*names, *others, "config.json"]}
    assert client(model=NAME).returncode == 0
    place = tmp_path / "models/meta-llama--Tiny-hf"
    assert sorted(path.name for path in place.iterdir()) == sorted([*names, "config.json", "manifest.json"])


def test_shards_of_another_name_are_taken_too_and_a_directory_without_any_is_mended(hub, client, tmp_path):
    """As Qwen3.5 has them. Before they were known such a model was fetched without its weights, and then kept so."""
    shards = ["model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors"]
    names = [*shards, "model.safetensors.index.json", "config.json"]
    hub.models[NAME].files = {name: name.encode() * 100 for name in names}
    assert client(model=NAME).returncode == 0
    place = tmp_path / "models/meta-llama--Tiny-hf"
    assert sorted(path.name for path in place.iterdir()) == sorted([*names, "manifest.json"])
    manifest = json.loads((place / "manifest.json").read_text())
    for shard in shards:
        (place / shard).unlink()
        del manifest["files"][shard]
    (place / "manifest.json").write_text(json.dumps(manifest))
    assert client(model=NAME).returncode == 0
    assert sorted(path.name for path in place.iterdir()) == sorted([*names, "manifest.json"])


def test_no_network_is_one_line(client):
    line = failed(client(endpoint="http://127.0.0.1:9", model=NAME))
    assert line.startswith(f"model: {NAME} cannot be fetched (")
    assert line.endswith("start again (what has arrived is kept), or write a directory")


def test_a_full_disk_is_said_before_the_download(hub, client, tmp_path, monkeypatch):
    def huge(name: str, model: Model) -> dict[str, object]:
        answer = facts_of(name, model)
        for file in answer["siblings"]:
            if file["rfilename"] == "model.safetensors":
                file["size"] = 10**15
        return answer

    monkeypatch.setattr("tests.unit.training.hub.facts_of", huge)
    line = failed(client(model=NAME))
    assert line.startswith(f"model: {NAME} needs 1000000.0 GB more, {tmp_path / 'models'} has ")
    assert line.endswith("GB free; make room there or choose a smaller model")
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_hashes_of_the_test_hub_are_those_of_git():
    assert git_hash(b"Hello, World!") == "b45ef6fec89518d314f546fd6c3025367b721684"
