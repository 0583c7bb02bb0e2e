"""A sample of what the model writes, to look at."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationConfig

from training.models.adapters import causal_model
from training.models.attention import own_attention
from training.models.load import padding_token


@torch.no_grad()
def generate(model: nn.Module, tokenizer, prompt: list[int], length: int) -> str:
    """Text of `prompt` (token numbers) and its greedy continuation by at most `length` tokens.

    Of a prompt that leaves no room among the model's positions its end is taken.
    """
    causal, was_training = causal_model(model), model.training
    places = getattr(causal.config.get_text_config(), "max_position_embeddings", None) or length + len(prompt)
    length = min(length, places - 1)
    prompt = prompt[-(places - length) :] or [tokenizer.eos_token_id]
    tokens = torch.tensor([prompt], device=causal.device)
    kept = causal.generation_config  # its sampling settings would be mixed into ours
    causal.generation_config = GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=padding_token(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    model.eval()
    try:
        # Compiled blocks would be compiled once more for generating.
        with own_attention(causal), torch.compiler.set_stance("force_eager"):
            output = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    finally:
        causal.generation_config = kept
        model.train(was_training)
    return tokenizer.decode(output[0], skip_special_tokens=True)
