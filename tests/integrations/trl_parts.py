"""Small models, texts and trainers of TRL for test_trl.py; apart, because they take seconds to import."""

from __future__ import annotations

import copy

import datasets
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steepest.integrations import trl as ours

datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()

WORDS = ["<pad>", "<end>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
FREE = ("simpo", "orpo", "cpo")
CONFIGS = {"SFT": "SFTConfig", "DPO": "DPOConfig", "GRPO": "GRPOConfig", "Distillation": "DistillationConfig"}


def tokenizer():
    """A word a letter."""
    own = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="left"
    )


def model(seed=0, **more):
    """Two layers; weights large enough for predictions that differ."""
    torch.manual_seed(seed)
    options = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
        "attn_implementation": "eager", **more,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **options))


def family(name, seed=0, bias=None, **more):
    """Another kind of model; its output layer's bias is up to so much."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")
    if name == "GPT2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                 "attn_pdrop": 0.0}  # fmt: skip
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip
    own = config(vocab_size=len(WORDS), initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=1,
                 attn_implementation="eager", **sizes, **more)  # fmt: skip
    causal = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(own)
    if bias is not None:
        causal.lm_head.bias.data.uniform_(-bias, bias)
    return causal


def texts(rows=12):
    """Pieces of an alphabet of different lengths."""
    return [" ".join("abcdefghijklmnop"[row % 5 : row % 5 + 3 + row % 7]) for row in range(rows)]


def data(kind, rows=12):
    own = texts(rows)
    if kind == "SFT":
        return Dataset.from_dict({"prompt": [text[:2] for text in own], "completion": [text[2:] for text in own]})
    if kind == "DPO":
        rejected = [text[2:][::-1] + " z" * (place % 3) for place, text in enumerate(own)]
        return Dataset.from_dict(
            {"prompt": [text[:2] for text in own], "chosen": [text[2:] for text in own], "rejected": rejected}
        )
    return Dataset.from_dict({"prompt": own})


def reward(completions, **_):
    """The share of letters from the first half of the alphabet."""
    return [sum("a" <= letter <= "m" for letter in text) / (1 + len(text)) for text in completions]


def trainer(kind, folder, loss=None, steps=3, accumulation=1, own=None, rows=12, mine=True, options=None, **more):
    """A trainer of this package, or of TRL."""
    own = model() if own is None else own
    room = ours if mine else trl
    config = getattr(trl, CONFIGS[kind])
    given = {
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4, "save_strategy": "no", "max_grad_norm": 0.0, "bf16": False,
        "gradient_checkpointing": False,
    }  # fmt: skip
    if kind in ("GRPO", "Distillation"):
        given |= {"max_completion_length": 6, "temperature": 0.8}
    if kind == "GRPO":
        given["num_generations"] = 4
    given |= options or {}
    args = config(
        str(folder), max_steps=steps, gradient_accumulation_steps=accumulation, use_cpu=True, report_to=[],
        logging_steps=1, disable_tqdm=True, **given,
    )  # fmt: skip
    named = {"model": own, "args": args, "train_dataset": data(kind, rows), "processing_class": tokenizer(), **more}
    if kind == "DPO" and "ref_model" not in named and loss not in FREE:
        named["ref_model"] = copy.deepcopy(own)
    if kind == "GRPO":
        named.setdefault("reward_funcs", reward)
    if kind == "Distillation":
        named.setdefault("teacher_model", model(7))
    if mine:
        named["loss"] = loss
    return getattr(room, f"{kind}Trainer")(**named)
