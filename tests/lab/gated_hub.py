"""A hub on a node's loopback with one gated model, tiny but real; test_cluster.py runs it on the head.

    python gated_hub.py SHA256     of the token that has access: the token itself is nowhere on the node

prints its address and serves until it is killed. hub.py and tiny_tokenizer.py of the unit tests lie beside it.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import tempfile
from pathlib import Path

from hub import Hub, Model
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

NAME = "acme/tiny-gated"


class KnownByHash:
    """The one token with access, compared by its hash."""

    def __init__(self, sha256: str):
        self.sha256 = sha256

    def __contains__(self, token: str) -> bool:
        return hashlib.sha256(token.encode()).hexdigest() == self.sha256

    def get(self, token: str, default: bool) -> bool:
        return token in self or default


def tiny_model() -> Model:
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **shape)
    with tempfile.TemporaryDirectory() as directory:
        LlamaForCausalLM(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return Model({path.name: path.read_bytes() for path in Path(directory).iterdir()}, gated=True)


if __name__ == "__main__":
    hub = Hub()
    hub.tokens = KnownByHash(sys.argv[1])
    hub.models[NAME] = tiny_model()
    print(hub.url, flush=True)
    signal.pause()
