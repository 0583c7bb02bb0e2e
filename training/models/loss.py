"""The loss inside the model, so that DDP sees one forward for both; the logits of all tokens never exist at once.

Only places whose label counts reach the head, in pieces: the cross-entropy of a piece and its gradient are taken
while its logits are there. `torch.nn.functional.linear_cross_entropy` does the same, but keeps the sum of the
loss and the gradient of the weights in bf16 where the inputs are (torch 2.13; of 8,192 tokens and a vocabulary of
32,000 the loss was wrong by 14 %, the gradient ten times as rough). Here both are fp32, and it is no slower.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from training.data.batch import IGNORED
from training.models.adapters import causal_model
from training.models.attention import outputs, own_attention, way_of
from training.settings import Config

CPU_LOGITS = 1 << 23  # logits of a piece, 32 MB; about the fastest, too
CUDA_LOGITS = 1 << 26  # 256 MB
CUDA_LOGITS_TRAINED = 1 << 28  # each piece reads and writes the gradient of all weights of the head
PIECE = (64, 2048)  # tokens of a piece, at least and at most
SCALES = {"logits_scaling": lambda scale: 1 / scale, "logit_scale": float}  # Granite divides, Cohere multiplies


class SummedLoss(nn.Module):
    """A causal language model that answers with its summed loss.

    `forward(tokens, labels, positions, bounds, longest, places)` takes a flat row as `Batch.inputs` makes it and gives
    the SUM of the cross-entropy over the labels that count, a float32 scalar. Sums of micro-batches and ranks
    add up exactly as one big batch would; means do not. The model must be on its device.
    """

    def __init__(self, model: nn.Module, config: Config):
        super().__init__()
        self.model = model
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.head = _head_of(causal_model(model), self.dtype)

    def forward(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor,
        bounds: torch.Tensor,
        longest: int,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        causal, labels, row = causal_model(self.model), labels.flatten(), (tokens, positions, bounds, longest)
        if places is None:  # on a GPU this waits for it
            places = labels.ne(IGNORED).nonzero().flatten()
        counted = places.numel() > 0
        if not counted:  # a rank without work: one place and no loss, so that every gradient is there and zero
            places = places.new_zeros(1)
        whole = places.numel() == labels.numel()
        network, field = (causal.get_decoder(), "last_hidden_state") if self.head else (causal, "logits")
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            made = outputs(network, field, way_of(causal), *row).flatten(0, 1)
        made = made if whole else made.index_select(0, places)
        labels = (labels if whole else labels[places]).clamp(min=0)
        if self.head:
            loss = self.head(made, labels, self.dtype)
        else:
            loss = functional.cross_entropy(made.float(), labels, reduction="sum")
        return loss if counted else loss * 0.0


class Head:
    """The head's weights and what the model does to its logits, as far as it is known here."""

    def __init__(self, linear: nn.Linear, scale: float, softcap: float | None):
        self.linear, self.scale, self.softcap = linear, scale, softcap

    def __call__(self, hidden: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        if self.scale != 1:
            hidden, bias = hidden * self.scale, None if bias is None else bias * self.scale
        trained, vocabulary = weight.requires_grad, weight.shape[0]
        budget = CPU_LOGITS if hidden.device.type == "cpu" else CUDA_LOGITS_TRAINED if trained else CUDA_LOGITS
        rows = min(max(budget // vocabulary, PIECE[0]), PIECE[1])
        return _CrossEntropy.apply(hidden, weight, bias, labels, self.softcap, dtype, rows, torch.is_grad_enabled())


def _head_of(causal: PreTrainedModel, dtype: torch.dtype) -> Head | None:
    """The head of a model if we can compute what it does, tried on a few tokens; else None."""
    linear, settings = causal.get_output_embeddings(), causal.config.get_text_config()
    if type(linear) is not nn.Linear:  # quantised, or with an adapter of its own
        return None
    scale = 1.0
    for name, meaning in SCALES.items():
        if getattr(settings, name, None):
            scale *= meaning(getattr(settings, name))
    head = Head(linear, scale, getattr(settings, "final_logit_softcapping", None))
    was_training, device = causal.training, linear.weight.device
    tokens = torch.arange(1, 9, device=device)[None] % len(linear.weight)
    causal.eval()
    with own_attention(causal), torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
        theirs = causal(input_ids=tokens, use_cache=False).logits[0].float()
        hidden = causal.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state[0]
    causal.train(was_training)
    expected = functional.cross_entropy(theirs, tokens[0], reduction="sum")
    with torch.no_grad():
        found = head(hidden, tokens[0], dtype)
    exact = bool((found - expected).abs() <= (1e-5 if dtype == torch.float32 else 1e-2) * expected)
    if not exact:
        print("loss: this model changes its logits in a way of its own; all of them are kept in memory", flush=True)
    return head if exact else None


class _CrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softcap(hidden @ weight.T + bias), `rows` tokens at a time.

    hidden (N, width), weight (vocabulary, width), labels (N); products are taken in `dtype`, sums in fp32.
    The gradients are computed on the way forward, where the logits are; backward only scales them, once.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, softcap, dtype, rows, with_gradients):
        needs = [needed and with_gradients for needed in ctx.needs_input_grad[:3]]
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        gradients = [
            torch.empty_like(inputs) if needs[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if needs[2] else None,
        ]
        loss = torch.zeros((), device=hidden.device)
        # One for all pieces: the next one would be made while the last is still there.
        buffer = inputs.new_empty((min(rows, len(inputs)), len(weight)), dtype=torch.float32)
        for start in range(0, len(inputs), rows):
            piece, of_piece = inputs[start : start + rows], labels[start : start + rows, None]
            logits = buffer[: len(piece)]
            if dtype == torch.float32:
                torch.mm(piece, matrix.T, out=logits)
            else:
                logits.copy_(piece @ matrix.T)
            if bias is not None:
                logits += bias
            if softcap is not None:
                logits = torch.tanh_(logits.div_(softcap)).mul_(softcap)
            slope = None if softcap is None else 1 - (logits / softcap).square_()
            logits -= logits.amax(1, keepdim=True)
            right = logits.gather(1, of_piece)
            total = logits.exp_().sum(1, keepdim=True)
            loss += (total.log() - right).sum()
            if not any(needs):
                continue
            difference = logits.div_(total).scatter_add_(1, of_piece, torch.full_like(right, -1))
            if slope is not None:
                difference *= slope
            if needs[2]:
                gradients[2] += difference.sum(0)
            difference = difference.to(dtype)
            if needs[0]:
                torch.mm(difference, matrix, out=gradients[0][start : start + rows])
            if needs[1] and dtype == torch.float32:
                gradients[1].addmm_(difference.T, piece)
            elif needs[1]:
                gradients[1] += difference.T @ piece
        pairs = zip(gradients, (hidden, weight, bias), strict=True)
        ctx.gradients = [None if gradient is None else gradient.to(of.dtype) for gradient, of in pairs]
        return loss

    @staticmethod
    def backward(ctx, upstream):
        gradients, ctx.gradients = ctx.gradients, None  # used up: they are as large as the weights
        return *(None if gradient is None else gradient.mul_(upstream) for gradient in gradients), *[None] * 5
