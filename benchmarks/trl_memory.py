"""Steps of TRL's trainers with a loss of its own and of ours: the most bytes that tensors hold at once, and seconds.

A Llama of two narrow layers under a vocabulary of 32,000, on one thread: SFT with cross-entropy, which TRL takes in
tiles of 4096 tokens by 32,768 words, and with a share of entropy, which TRL takes by ``compute_loss_func`` from logits;
DPO and GRPO, whose log-probabilities TRL takes in such tiles. Forward and backward of one micro-batch that is there;
losses agree. Peaks are beyond what is there before, gradients of the weights included, in a call of its own; rounds
take turns. Without TRL nothing is measured.

    python benchmarks/trl_memory.py [--tokens 256] [--rows 4] [--classes 32000] [--width 256] [--rounds 3]
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _options import read_options
from _record import keep
from _rounds import measure
from torch import Tensor

from steepest.core.allocations import peak_bytes
from steepest.core.group_policy import GroupPolicyLoss
from steepest.losses import TokenCrossEntropyLoss

SHARE = 0.1
"""Of entropy."""


def with_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Cross-entropy less a share of entropy, from logits."""
    log_p = outputs.logits[:, :-1].float().log_softmax(-1)
    target = labels[:, 1:]
    losses = -log_p.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1) + SHARE * (log_p.exp() * log_p).sum(-1)
    counts = target != -100
    return (losses * counts).sum() / (counts.sum() if num_items_in_batch is None else num_items_in_batch)


class Bench:
    """Trainers of one model and one batch a kind.

    Args:
        rows, tokens, classes, width: of the batch and the model.
        folder: for what trainers write.
    """

    def __init__(self, rows: int, tokens: int, classes: int, width: int, folder: str) -> None:
        from tokenizers import Tokenizer, models
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        self.rows, self.tokens, self.folder = rows, tokens, folder
        torch.manual_seed(0)
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=classes, pad_token_id=0, eos_token_id=1, **sizes))
        words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "<unk>": 2}, unk_token="<unk>"))
        names = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, classes, (2 * rows, tokens), generator=generator)
        self.old = -8.0 - torch.rand(rows, tokens - 8, generator=generator)

    def step(self, kind: str, room: Any, options: dict[str, Any], **named: Any) -> Callable[[], Tensor]:
        """Forward and backward of a micro-batch, which gives the loss."""
        import trl
        from datasets import Dataset

        config = getattr(trl, f"{kind}Config")(
            self.folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True,
            per_device_train_batch_size=self.rows, **options,
        )  # fmt: skip
        model = copy.deepcopy(self.model)
        if kind == "SFT":
            data = {"input_ids": self.ids[: self.rows].tolist(), "labels": self.ids[: self.rows].tolist()}
        elif kind == "DPO":
            data = {"prompt": ["<unk>"], "chosen": ["<unk>"], "rejected": ["<unk>"]}
            named["ref_model"] = copy.deepcopy(self.model)
        else:
            data = {"prompt": ["<unk>"] * self.rows}
            named["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
        trainer = getattr(room, f"{kind}Trainer")(
            model=model, args=config, train_dataset=Dataset.from_dict(data), processing_class=self.tokenizer, **named
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        batch, count = self.batch(kind), torch.tensor(float(self.rows * (self.tokens - 1)))

        def run() -> Tensor:
            trainer.model.zero_grad()
            loss: Tensor = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
            loss.backward()
            return loss.detach()

        return run

    def batch(self, kind: str) -> dict[str, Tensor]:
        """As the trainer's collator gives it; eight tokens are a prompt."""
        if kind == "SFT":
            ids = self.ids[: self.rows]
            return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
        if kind == "DPO":
            mask = torch.ones_like(self.ids)
            answers = mask.clone()
            answers[:, :8] = 0
            return {"input_ids": self.ids, "attention_mask": mask, "completion_mask": answers}
        ids, answers = self.ids[: self.rows], self.ids[: self.rows, 8:]
        advantages = torch.linspace(-1, 1, self.rows)
        return {
            "prompt_ids": ids[:, :8], "prompt_mask": torch.ones_like(ids[:, :8]), "completion_ids": answers,
            "completion_mask": torch.ones_like(answers), "advantages": advantages, "old_per_token_logps": self.old,
            "num_items_in_batch": torch.tensor(answers.numel()), "items": torch.tensor(float(answers.numel())),
        }  # fmt: skip

    def tasks(self) -> dict[str, dict[str, Callable[[], Tensor]]]:
        """By task, TRL's own step and ours."""
        import trl

        from steepest.integrations import trl as ours

        group = {"num_generations": self.rows, "max_completion_length": self.tokens - 8}
        of_entropy = TokenCrossEntropyLoss(SHARE)
        return {
            "SFT, cross-entropy": {
                "TRL": self.step("SFT", trl, {}),
                "steepest": self.step("SFT", ours, {}, loss=TokenCrossEntropyLoss()),
            },
            "SFT, a share of entropy": {
                "TRL": self.step("SFT", trl, {}, compute_loss_func=with_entropy),
                "steepest": self.step("SFT", ours, {}, loss=of_entropy),
            },
            "DPO, sigmoid": {
                "TRL": self.step("DPO", trl, {}),
                "steepest": self.step("DPO", ours, {}, loss="sigmoid"),
            },
            "GRPO, dapo": {
                "TRL": self.step("GRPO", trl, {"epsilon_high": 0.28, **group}),
                "steepest": self.step("GRPO", ours, group, loss=GroupPolicyLoss("dapo")),
            },
        }


def main() -> None:
    """Measure, print and keep the numbers."""
    options = read_options(__doc__, tokens=(256, 16), rows=(4, 2), classes=(32_000, 60), width=(256, 16), rounds=(3, 1))
    if importlib.util.find_spec("trl") is None:
        print("trl is not installed: nothing is measured")
        if options.quick:
            keep("trl_memory", {}, options)
        return
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = Bench(options.rows, options.tokens, options.classes, options.width, folder).tasks()
        for task, steps in tasks.items():
            losses = {name: float(step()) for name, step in steps.items()}
            torch.testing.assert_close(losses["steepest"], losses["TRL"], rtol=1e-4, atol=1e-5)
            times = measure(steps, options.rounds, "cpu")
            row: dict[str, Any] = {"task": task}
            for name, step in steps.items():
                row[name] = {
                    "loss": round(losses[name], 5), "median_ms": round(statistics.median(times[name]), 1),
                    "least_ms": round(min(times[name]), 1), "peak_mib": round(peak_bytes(step) / 2**20, 1),
                }  # fmt: skip
            row["time"] = round(row["steepest"]["median_ms"] / row["TRL"]["median_ms"], 3)
            row["peak"] = round(row["steepest"]["peak_mib"] / max(row["TRL"]["peak_mib"], 0.1), 3)
            table.append(row)
            print(f"{task:<26} time {row['time']}, peak {row['peak']}; {row['steepest']}; TRL {row['TRL']}")
    facts = {"threads": torch.get_num_threads(), "trl": importlib.metadata.version("trl"), "rows": table}
    keep("trl_memory", facts, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
