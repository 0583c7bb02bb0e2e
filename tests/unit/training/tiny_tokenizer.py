"""A fast tokenizer of a few hundred tokens, made on the spot: nothing is downloaded."""

from __future__ import annotations

import functools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = "the answer to the question is the question of the answer and the user is the assistant\n" * 20


@functools.cache
def _trained() -> str:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|start|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    return made.to_str()


def tiny_tokenizer(chat_template: str | None = None, *, start: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the end mark <|im_end|>, on request with a start mark <|start|>."""
    marks = {"bos_token": "<|start|>"} if start else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), eos_token="<|im_end|>", pad_token="<|im_end|>", **marks
    )
    tokenizer.chat_template = chat_template
    return tokenizer
