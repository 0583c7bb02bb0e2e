"""Loading models and tokenizers: what comes out, what the switches change, and one line for each mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.unit.training.tiny_models import GROUPED, SIZES, build, config, row, save, scratch
from training.models import ModelError, SummedLoss, Trained, load_model, load_tokenizer, padding_token
from training.settings import Config

CPU = torch.device("cpu")


def load(settings: Config) -> torch.nn.Module:
    return load_model(settings, load_tokenizer(settings), CPU)


def test_bytes_are_tokens():
    tokenizer = load_tokenizer(scratch())
    assert tokenizer("aß", add_special_tokens=False).input_ids == [ord("a") + 3, *(byte + 3 for byte in "ß".encode())]
    assert (len(tokenizer), padding_token(tokenizer), tokenizer.eos_token_id) == (259, 0, 1)


def test_scratch_weights_follow_from_the_seed_alone():
    states = []
    for seed, before in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(before)
        states.append(Trained(load(scratch(seed=seed))).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_directory_in_16_bits_is_trained_in_fp32(tmp_path):
    directory = save("llama", tmp_path)
    build("llama").bfloat16().save_pretrained(directory)
    model = load(config(model=str(directory), precision="bf16"))
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())
    loss = SummedLoss(model, config(precision="bf16"))(*row())
    assert loss.dtype == torch.float32
    exact = SummedLoss(model, config())(*row())
    assert loss != exact
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.01)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_gradient_checkpointing_changes_no_bit(tuning, tmp_path, monkeypatch):
    directory, results, calls = str(save("llama", tmp_path)), {}, []
    forward = transformers.models.llama.modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(
        transformers.models.llama.modeling_llama.LlamaMLP,
        "forward",
        lambda *inputs: (calls.append(None), forward(*inputs))[1],
    )
    for again in (False, True):
        settings = config(model=directory, tuning=tuning, gradient_checkpointing=again)
        model = load(settings)
        loss = SummedLoss(model, settings)
        calls.clear()
        loss(*row()).backward()
        results[again] = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        assert len(calls) == (4 if again else 2)  # two blocks, computed again in the backward pass
    assert all(torch.equal(one, other) for one, other in zip(results[False], results[True], strict=True))


def test_compiled_blocks_give_the_same_losses_under_the_same_names():
    losses, names = {}, {}
    for compiled in (False, True):
        settings = scratch(scratch_hidden=32, compile=compiled)
        model = load(settings)
        loss, optimizer = SummedLoss(model, settings), torch.optim.SGD(model.parameters(), lr=1e-3)
        losses[compiled] = []
        for step in range(4):
            value = loss(*row((3 + step, 1, 20 + 2 * step)[: 1 + step % 3], seed=step))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[compiled].append(float(value.detach()))
        names[compiled] = list(Trained(model).state_dict())
    assert model.model.layers[0]._compiled_call_impl is not None
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert names[True] == names[False]


def changed(directory: Path, **settings: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def break_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def make_adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")


def make_encoder(directory: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(directory)


def make_classifier(directory: Path) -> None:
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**GROUPED)).save_pretrained(directory)


def make_translator(directory: Path) -> None:
    transformers.T5Config().save_pretrained(directory)


def make_own_code(directory: Path) -> None:
    changed(directory, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})


MISTAKES = {
    "an adapter": (make_adapter, "holds an adapter, not a model; write its base, or merge them first"),
    "an encoder": (make_encoder, "lacks weights of a causal language model (6 in all, such as cls.predictions.bias); "),
    "a classifier": (make_classifier, "lacks weights of a causal language model (1 in all, such as lm_head.weight); "),
    "a translator": (make_translator, "cannot be loaded (it is not a causal language model); write a Hugging Face "),
    "own code": (make_own_code, "cannot be loaded (it needs program code of its own, which is never run here); "),
    "half a file": (break_weights, "cannot be loaded (Error while deserializing header: "),
    "no weights": (lambda each: (each / "model.safetensors").unlink(), "cannot be loaded (Error no file named "),
    "other shapes": (
        lambda each: changed(each, hidden_size=64),
        "cannot be loaded (its weights do not have the shapes that its config.json tells); write a Hugging Face ",
    ),
    "broken JSON": (lambda each: (each / "config.json").write_text("{"), "is not a valid JSON file"),
    "nothing": (
        shutil.rmtree,
        "cannot be loaded (no such directory); write a Hugging Face directory, a hub id or scratch",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_model_that_cannot_be_used_is_named_in_one_line(mistake, tmp_path):
    spoil, reason = MISTAKES[mistake]
    spoil(save("llama", tmp_path / "model"))
    with pytest.raises(ModelError) as caught:
        load(config(model=str(tmp_path / "model"), tokenizer="bytes"))
    message = str(caught.value)
    assert message.startswith(f"model: {tmp_path}/model ")
    assert reason in message
    assert "\n" not in message and len(message) < 400


def words(directory: Path, **special: str) -> str:
    tokenizer = Tokenizer(WordLevel({"a": 0, "end": 1, "b": 300}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    return str(directory)


def test_tokenizer_that_cannot_be_used_is_named_in_one_line(tmp_path):
    model = str(save("llama", tmp_path / "model"))
    (tmp_path / "empty").mkdir()
    for tokenizer, reason in (
        (str(tmp_path / "empty"), "cannot be loaded (there is no tokenizer in it); write a Hugging Face directory, "),
        (str(tmp_path / "none"), "cannot be loaded (no such directory); write a Hugging Face directory, "),
        (words(tmp_path / "endless"), "has no end-of-text token; choose one that has"),
    ):
        with pytest.raises(ModelError) as caught:
            load_tokenizer(config(model=model, tokenizer=tokenizer))
        assert str(caught.value).startswith(f"tokenizer: {tokenizer} {reason}")
    settings = config(model=model, tokenizer=words(tmp_path / "words", eos_token="end"))
    with pytest.raises(ModelError, match=rf"^tokenizer: its highest token is 300, but {model} knows 259 tokens; "):
        load(settings)


def test_marks_for_what_a_model_cannot_see_count_where_they_occur_only(tmp_path):
    """Gemma 3 of 1B has a tokenizer with a mark for images, one above its embeddings."""
    model = str(save("llama", tmp_path / "model"))
    settings = config(model=model, tokenizer=words(tmp_path / "words", eos_token="end"))
    tokenizer = load_tokenizer(settings)
    assert load_model(settings, tokenizer, CPU, highest=lambda: 258).training
    with pytest.raises(ModelError, match="leave the key out"):
        load_model(settings, tokenizer, CPU, highest=lambda: 259)
    words(tmp_path / "model", eos_token="end")
    with pytest.raises(ModelError, match="knows 259 tokens; choose data without such tokens"):
        load_model(config(model=model), load_tokenizer(config(model=model)), CPU, highest=lambda: 300)


QUANTISED = {
    "4 bits, all": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "full", "tuning=qlora, or the model that"),
    "8 bits": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "qlora",
        "write the model that it was made from",
    ),
    "fp8": ({"quant_method": "fp8"}, "lora", r"\(fp8\), and its weights cannot be trained; write the model that"),
}


@pytest.mark.parametrize(("facts", "tuning", "fix"), QUANTISED.values(), ids=QUANTISED)
def test_a_model_that_is_quantised_already_is_refused_where_it_cannot_be_trained(facts, tuning, fix, tmp_path):
    directory = save("llama", tmp_path)
    written = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(written | {"quantization_config": facts}))
    with pytest.raises(ModelError, match=fix):
        load(config(model=str(directory), tuning=tuning))


SEES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SEES |= {"image_size": 16, "patch_size": 8}


@pytest.mark.parametrize("settings", [{}, {"tuning": "lora"}, {"tuning": "lora", "lora_targets": "q_proj"}], ids=str)
def test_of_a_model_that_sees_images_the_part_for_text_is_trained(settings, tmp_path):
    """Gemma 3 from 4B up is one. DDP waits for the gradient of all that is trained, in vain for what sees."""
    reads = GROUPED | {"head_dim": 8, "sliding_window": 16}
    both = transformers.Gemma3Config(text_config=reads, vision_config=SEES, mm_tokens_per_image=4)
    transformers.AutoModelForCausalLM.from_config(both).save_pretrained(tmp_path)
    transformers.ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    chosen = config(model=str(tmp_path), **settings)
    model = load(chosen)
    SummedLoss(model, chosen)(*row()).backward()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert trained and not [name for name in trained if "vision" in name or "projector" in name]
    assert [name for name, each in trained.items() if each.grad is None] == []
    assert any("vision" in name for name, _ in model.named_parameters())


def test_rows_longer_than_the_model_reads_are_refused(tmp_path):
    model = str(save("llama", tmp_path))
    with pytest.raises(ModelError, match=rf"^seq_len: 129 is more than the 128 positions of {model}; write 128$"):
        load(config(model=model, seq_len=129))
