"""Trainers of TRL that take a loss of this package, without logits where the output layer allows that.

``loss=`` takes the place of the trainer's own; everything else is TRL's: data, generation, rewards, references,
adapters, metrics. Without it each class is TRL's class. What a loss decides is refused in the configuration.

Example::

    from steepest.integrations.trl import SFTTrainer
    from steepest.losses import EMOLoss

    loss = EMOLoss(model.get_input_embeddings().weight.detach())
    SFTTrainer(model, SFTConfig("run"), train_dataset=rows, processing_class=tokenizer, loss=loss).train()
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from ..core.checks import refuse, refuse_type
from ..core.errors import InputError
from ..core.group_policy import FORMS, GroupPolicyLoss
from ..core.objective import Objective
from ..core.policy_loss import PolicyLoss
from ..core.preference import PREFERENCE_FORMS, LogProbabilityLoss, PreferenceLoss
from ..core.token_loss import TokenLoss
from ..kernels.linear_distillation import DIVERGENCES, linear_distillation
from ..kernels.token_statistics import token_statistics
from ._output_layer import inner_model

try:
    import trl
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.grpo_config import GRPOConfig
except ImportError as error:
    raise InputError(f"trainers of TRL: {error}; pip install 'steepest[trl]'") from error

from ._token_rows import TokenRows, give_rows, logits_stand_in, token_rows

__all__ = ["DPOTrainer", "DistillationTrainer", "GRPOTrainer", "SFTTrainer"]

IGNORED = -100
_STATE = "loss_{}.pt"
"""Where a checkpoint has the state of the loss, by the number of the process."""
_ROWS = 2**24
"""Bytes of logits that an objective gets at once."""


class _OwnLoss:
    """A loss beside a trainer's own: its place, its state in checkpoints, its epochs."""

    loss: Any = None
    args: Any
    model: Any
    accelerator: Any
    data_collator: Any
    _signature_columns: Any
    _metrics: Any
    aux_loss_enabled: Any
    router_aux_loss_coef: Any

    def _take(self, loss: Any) -> None:
        """Before the trainer begins."""
        if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            refuse("loss", "one without parameters, which no optimizer would get", type(loss).__name__)
        self.loss, self._epochs = loss, _Epochs(loss)

    def _begin(self, *models: Any, temperature: float = 1.0, tells: tuple[str, ...] = ()) -> None:
        """Once the trainer is there; the first model is the one that is trained."""
        if isinstance(self.loss, nn.Module):
            self.loss.to(self.args.device)
        if hasattr(self.loss, "start_epoch"):
            self.add_callback(self._epochs)  # type: ignore[attr-defined]
        for model in models:
            if model is not None:
                give_rows(model, temperature, tells if model is models[0] else ())

    def _mode(self) -> str:
        """As the trainer names it; a loss that has state learns of it."""
        training = bool(self.model.training)
        if isinstance(self.loss, nn.Module):
            self.loss.train(training)
        return "train" if training else "eval"

    def _with_experts(self, loss: Tensor, aux_loss: Any, parts: float = 1.0) -> Tensor:
        """With what balances experts, as the trainer weighs it."""
        return loss + self.router_aux_loss_coef * aux_loss / parts if self.aux_loss_enabled else loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._keeps_state():
            torch.save(self.loss.state_dict(), Path(output_dir) / _STATE.format(self.args.process_index))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._keeps_state():
            return
        files = [Path(checkpoint) / _STATE.format(number) for number in (self.args.process_index, 0)]
        for file in [file for file in files if file.is_file()][:1]:
            self.loss.load_state_dict(torch.load(file, map_location=self.args.device, weights_only=True))
            self._epochs.resumed = True

    def _keeps_state(self) -> bool:
        return isinstance(self.loss, nn.Module) and bool(self.loss.state_dict())


class _Epochs(TrainerCallback):
    """Tells a loss which epoch begins; not again where it resumes within one."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.resumed = loss, False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        epoch = float(state.epoch or 0)
        if not (self.resumed and epoch % 1):
            self.loss.start_epoch(int(epoch) + 1, int(state.num_train_epochs))
        self.resumed = False


class _Watched:
    """A model in the call of a trainer: further arguments go along, and the last outputs stay at hand."""

    def __init__(self, model: Any, **further: Any) -> None:
        self.model, self.further = model, further
        self.outputs: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head"):
            return self.model(*args, **kwargs)
        self.outputs = self.model(*args, **kwargs, **self.further)
        return self.outputs


class SFTTrainer(_OwnLoss, trl.SFTTrainer):
    """Supervised fine-tuning with a loss of tokens; see ``trl.SFTTrainer``.

    The loss gets hidden states, output layer and labels that are aligned with them; logits are formed only where the
    output layer is not a plain linear one. A step's divisor is counted over its micro-batches and ranks, in the loss's
    own items; rows of packed batches come with ``segments``. Columns of the data that the loss asks for by name reach
    it: numbers of rows as they are, tensors of tokens (from a collator of your own) aligned as labels are.

    Args:
        *args, **kwargs: of the trainer.
        loss: a :class:`~steepest.core.token_loss.TokenLoss`, as those of ``steepest.losses.language``; None is TRL's.
            It has no label to ignore but -100. ``loss_type``, ``label_smoothing_factor`` and ``compute_loss_func`` then
            stay at their defaults.

    Raises:
        TypeError: no loss of tokens.
        ValueError: what the loss decides is set in the configuration too; another label to ignore.
    """

    def __init__(self, *args: Any, loss: TokenLoss | None = None, **kwargs: Any) -> None:
        if loss is not None:
            if not isinstance(loss, TokenLoss):
                refuse_type("loss", "a loss of tokens, as those of steepest.losses.language", loss)
            if loss.ignore_index != IGNORED:
                refuse("loss", f"ignore_index={IGNORED}", f"ignore_index={loss.ignore_index}")
            given = _arguments(super().__init__, args, kwargs)
            if given.get("compute_loss_func") is not None:
                refuse("compute_loss_func", "None with loss=", given["compute_loss_func"])
            _defaults(given.get("args"), ("loss_type", "label_smoothing_factor"))
        self._take(loss)
        super().__init__(*args, **kwargs)
        if loss is not None:
            if getattr(self.accelerator.parallelism_config, "sp_enabled", False):
                refuse("args", "no sequence parallelism with loss=", "sp_size > 1")
            self.data_collator = _WithColumns(self.data_collator, loss.further) if loss.further else self.data_collator
            self._begin(self.model, tells=("entropy", "is_top1"))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch; of a step's micro-batch its share."""
        if self.loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._mode()
        inputs = dict(inputs)
        further = {name: inputs.pop(name) for name in self.loss.further if name in inputs}
        further = {name: _aligned(value, inputs["labels"]) for name, value in further.items()}

        def of_tokens(rows: TokenRows, labels: Tensor) -> Tensor:
            value: Tensor = self.loss(
                rows.source, labels, rows.head, **rows.options(), num_items=num_items_in_batch,
                segments=_segments(inputs), **further,
            )  # fmt: skip
            return value

        watched = _Watched(model, token_loss=of_tokens)
        given = super().compute_loss(watched, inputs, return_outputs, num_items_in_batch)
        loss = watched.outputs.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        steps = self.aux_loss_enabled and num_items_in_batch is not None
        parts = self.current_gradient_accumulation_steps if steps else 1
        loss = self._with_experts(loss, watched.outputs.aux_loss, parts)
        return (loss, given[1]) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        number = super()._get_num_items_in_batch(batch_samples, device)
        if self.loss is None or number is None:
            return number
        count = torch.zeros((), device=device)
        for batch in batch_samples:
            labels = batch["shift_labels"] if "shift_labels" in batch else batch["labels"][..., 1:]
            count = count + self.loss.count_items(labels, _segments(batch)).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum() / self.get_tp_size()
        return count

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.loss is not None:
            self._signature_columns = list(dict.fromkeys([*self._signature_columns, *self.loss.further]))


class _WithColumns:
    """A collator, and columns of one number a row beside what it gives."""

    def __init__(self, collator: Callable[[list[Any]], Any], names: Iterable[str]) -> None:
        self.collator, self.names = collator, tuple(names)

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collator(rows)
        for name in self.names:
            if name not in batch and all(isinstance(row.get(name), (int, float)) for row in rows):
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


class DPOTrainer(_OwnLoss, trl.DPOTrainer):
    """Training on preferences with another loss of pairs; see ``trl.DPOTrainer``.

    Log-probabilities of policy and reference come from hidden states and output layer. Losses that divide by the length
    of answers get it (``ipo`` too, as TRL's). One without a reference needs no reference model, and none is loaded.
    Its rewards, which are logged, are then those that the loss defines.

    Args:
        *args, **kwargs: of the trainer.
        loss: a name of :data:`~steepest.core.preference.PREFERENCE_FORMS`, which takes ``beta`` and ``label_smoothing``
            from the configuration, or a loss of pairs (``PreferenceLoss``, ``DiscoPOPLoss``), whose ``beta`` goes into
            it. None is TRL's. Everything else that decides the loss then stays at its default.

    Raises:
        TypeError: no loss of pairs under a policy and a reference.
        ValueError: what the loss decides is set in the configuration too; a reduction that is no mean.
    """

    def __init__(self, *args: Any, loss: str | LogProbabilityLoss | None = None, **kwargs: Any) -> None:
        self._free = False
        if loss is not None:
            given = _arguments(super().__init__, args, kwargs)
            config = given["args"] = copy.copy(given.get("args") or DPOConfig())
            named = isinstance(loss, str)
            decided = ("loss_type", "loss_weights", "f_divergence_type", "f_alpha_divergence_coef", "use_weighting",
                       "ld_alpha", "discopop_tau")  # fmt: skip
            _defaults(config, decided if named else (*decided, "label_smoothing"))
            if isinstance(loss, str):
                loss = PreferenceLoss(loss, config.beta, config.label_smoothing)
            _check_pairs(loss)
            beta = getattr(loss, "beta", config.beta)
            if config.beta != beta:
                _defaults(config, ("beta",))
            config.beta = beta
            self._free = isinstance(loss, PreferenceLoss) and not PREFERENCE_FORMS[loss.loss_type].reference
            if self._free:  # nothing is precomputed: TRL loads no reference then
                if given.get("ref_model") is not None:
                    refuse("ref_model", "None with a loss without a reference", type(given["ref_model"]).__name__)
                _defaults(config, ("precompute_ref_log_probs", "sync_ref_model"))
                config.precompute_ref_log_probs = True
            args, kwargs = (), given
        self._take(loss)
        super().__init__(*args, **kwargs)
        if self._free:
            self.args.precompute_ref_log_probs = self.precompute_ref_logps = False
        if loss is not None:
            self._begin(self.model, self.ref_model, tells=("entropy", "mean_logits", "is_top1"))

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset if self._free else super()._precompute_ref_logps(dataset, *args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        if self.loss is None:
            return super()._compute_loss(model, inputs, return_outputs)
        mode = self._mode()
        mask = inputs["completion_mask"][:, 1:]
        if "ref_chosen_logps" not in inputs or not self.precompute_ref_logps:
            inputs = {**inputs, **self._references(inputs, len(mask) // 2)}
        watched, before = _Watched(model), self.precompute_ref_logps
        self.precompute_ref_logps = True
        try:
            given = super()._compute_loss(watched, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = before
        logp = watched.outputs.log_probs[:, -mask.shape[1] :].sum(1).chunk(2)
        reference = () if self._free else (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
        loss = self._with_experts(self.loss(*logp, *reference, **self._lengths(mask)), watched.outputs.aux_loss)
        if self._free:
            self._log_rewards(mode)
        return (loss, given[1]) if return_outputs else loss

    def _references(self, inputs: Any, pairs: int) -> dict[str, Tensor]:
        """Log-probabilities of both answers under the reference; zeros where there is none."""
        if self._free:
            chosen = rejected = torch.zeros(pairs, device=self.accelerator.device)
        else:
            model = self.model if self.ref_model is None else self.ref_model
            chosen, rejected = self.compute_ref_log_probs(model, inputs)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def _lengths(self, mask: Tensor) -> dict[str, Tensor]:
        """Tokens of both answers, for a loss that divides by them."""
        form = PREFERENCE_FORMS[self.loss.loss_type] if isinstance(self.loss, PreferenceLoss) else None
        if form is None or not (form.per_token or form.name == "ipo"):
            return {}
        chosen, rejected = mask.sum(1).clamp(min=1).chunk(2)
        return {"chosen_length": chosen, "rejected_length": rejected}

    def _log_rewards(self, mode: str) -> None:
        """Rewards without a reference as the loss defines them, in the place of sums that TRL has logged."""
        names = {
            "chosen_reward": "chosen",
            "rejected_reward": "rejected",
            "margin": "margins",
            "accuracy": "accuracies",
        }
        for name, logged in names.items():
            term = getattr(self.loss, "terms", {}).get(name)
            if term is not None:
                self._metrics[mode][f"rewards/{logged}"][-1] = self.accelerator.gather(term).mean().item()


class GRPOTrainer(_OwnLoss, trl.GRPOTrainer):
    """Training on rewards with another loss of sampled tokens; see ``trl.GRPOTrainer``.

    The loss gets log-probabilities of policy, sampler and, where the configuration's ``beta`` is above 0, reference,
    TRL's advantages and its mask. What TRL multiplies a token's loss by (the correction of a sampler, masks of entropy
    and of tokens that are off policy) multiplies advantages. A step's divisor is the loss's own count over the
    generated batch, its share of one step; completions without a token that counts don't count.

    Args:
        *args, **kwargs: of the trainer.
        loss: a :class:`~steepest.core.group_policy.GroupPolicyLoss` or its name, or another
            :class:`~steepest.core.policy_loss.PolicyLoss` of advantages (``RPGLoss``, ``DeltaLNormalization``). None is
            TRL's. What decides the loss then stays at its default in the configuration; ``beta`` of a
            ``GroupPolicyLoss`` goes into it.

    Raises:
        TypeError: no loss of sampled tokens and advantages.
        ValueError: what the loss decides is set in the configuration too; an entropy bonus; a ``beta`` without use.
    """

    def __init__(self, *args: Any, loss: str | PolicyLoss | None = None, **kwargs: Any) -> None:
        self._factors: list[Tensor] = []
        self._scored: Any = None
        if loss is not None:
            if isinstance(loss, str):
                loss = GroupPolicyLoss(loss)
            if not isinstance(loss, PolicyLoss) or loss.grouped:
                refuse_type("loss", "a loss of sampled tokens and their advantages, or a name of one", loss)
            given = _arguments(super().__init__, args, kwargs)
            config = given["args"] = copy.copy(given.get("args") or GRPOConfig())
            _defaults(config, ("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level",
                               "use_bias_correction_kl", "sapo_temperature_pos", "sapo_temperature_neg", "vespo_k_pos",
                               "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "entropy_coef",
                               "use_adaptive_entropy"))  # fmt: skip
            if isinstance(loss, GroupPolicyLoss):
                _as_group(config, loss)
            elif config.beta > 0 and "ref_logp" not in inspect.signature(loss.forward).parameters:
                refuse("args.beta", "0 with a loss without a reference", config.beta)
            args, kwargs = (), given
        self._take(loss)
        super().__init__(*args, **kwargs)
        if loss is not None:
            self._begin(self.model, self.ref_model, temperature=self.temperature, tells=("entropy",))

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        if self.loss is not None:
            count = self.loss.count_items(_counted(batch)).to(torch.get_default_dtype())
            batch["items"] = self.accelerator.gather(count).sum()
        return batch

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        self._scored = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self._scored

    def get_high_entropy_mask(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's; the loss meets it too."""
        return self._factor(super().get_high_entropy_mask(*args, **kwargs))

    def get_off_policy_mask(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's; the loss meets it too."""
        return self._factor(super().get_off_policy_mask(*args, **kwargs))

    def _factor(self, mask: Tensor) -> Tensor:
        self._factors.append(mask)
        return mask

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        self._factors = []
        value: Tensor = super()._compute_loss(model, inputs)
        if self.loss is None:
            return value
        mode = self._mode()
        logp, _, aux_loss = self._scored
        self._scored = None
        old = inputs.get("old_per_token_logps")
        advantages = inputs["advantages"]
        if self.use_vllm and self.vllm_importance_sampling_correction:
            self._factors.append(inputs["importance_sampling_ratio"])
        for factor in self._factors:
            advantages = (advantages[:, None] if advantages.ndim == 1 else advantages) * factor
        if advantages.ndim == 2:
            advantages = advantages.expand_as(logp)
        further = {"ref_logp": inputs["ref_per_token_logps"]} if self.beta != 0.0 else {}
        parts = self.current_gradient_accumulation_steps if mode == "train" else 1
        counts = not isinstance(self.loss, GroupPolicyLoss) or FORMS[self.loss.form].counts
        if counts:
            share = parts / self.args.steps_per_generation if mode == "train" else 1.0
            further["num_items"] = inputs["items"] / self.accelerator.num_processes * share
        loss: Tensor = self.loss(logp, logp.detach() if old is None else old, advantages, _counted(inputs), **further)
        if not isinstance(self.loss, GroupPolicyLoss):
            for name in [name for name in self._metrics[mode] if name.startswith("clip_ratio/")]:
                del self._metrics[mode][name]
        return self._with_experts(loss if counts else loss / parts, aux_loss, parts)


class DistillationTrainer(_OwnLoss, trl.DistillationTrainer):
    """On-policy distillation with another divergence; see ``trl.DistillationTrainer``.

    Divergences by name run over hidden states and output layers of both models, a chunk of tokens at a time, at the
    temperature of the configuration. An objective that learns from a teacher's logits (``DistillationLoss``,
    ``PLDLoss``) gets those of both models, a few tokens at once, formed again for the gradient; its temperature is its
    own, and the token that was generated is its target.

    Args:
        *args, **kwargs: of the trainer.
        loss: "forward_kl", "reverse_kl", or "jensen_shannon" with the configuration's ``beta`` in (0, 1), the teacher's
            share; or an objective. None is TRL's. ``beta`` then stays at its default but for "jensen_shannon".

    Raises:
        TypeError: neither a name nor an objective that needs a teacher alone.
        ValueError: another name, a ``beta`` without use.
    """

    def __init__(self, *args: Any, loss: str | Objective | None = None, **kwargs: Any) -> None:
        if loss is not None:
            config = _arguments(super().__init__, args, kwargs).get("args")
            if isinstance(loss, str):
                if loss not in DIVERGENCES:
                    refuse("loss", f"one of {', '.join(DIVERGENCES)}", loss)
            elif not isinstance(loss, Objective) or tuple(loss.needs) != ("teacher",) or loss.unit != "sample":
                refuse_type("loss", "a divergence by name, or an objective that needs a teacher alone", loss)
            if loss != "jensen_shannon":
                _defaults(config, ("beta",))
            elif not 0.0 < getattr(config, "beta", 1.0) < 1.0:
                refuse("args.beta", 'a number in (0, 1) with loss="jensen_shannon"', getattr(config, "beta", 1.0))
        self._take(loss)
        super().__init__(*args, **kwargs)
        if loss is not None:
            self._begin()

    def _compute_loss(self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        if self.loss is None:
            return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        self._mode()
        mask = _counted(inputs) != 0
        student = self._rows(unwrapped_student, inputs)
        self.teacher_model.eval()
        unwrapped = self.accelerator.unwrap_model(self.teacher_model)
        with torch.no_grad():
            teacher = self._forward_redirection(self.teacher_model, unwrapped, self._rows, unwrapped, inputs)
        mask = mask.to(student.source.device)
        tokens = inputs["completion_ids"].to(mask.device)
        if isinstance(self.loss, str):
            total = self._divergence(student, teacher, mask)
        else:
            objective = copy.copy(self.loss)
            objective.reduction = "sum"
            total = _in_pieces(objective, student, teacher, tokens, mask)
        labels = tokens.masked_fill(~mask, IGNORED)
        with torch.no_grad():
            told = token_statistics(student.source, labels, student.head, want=("entropy",),
                                    temperature=self.temperature, **student.options())  # fmt: skip
        assert told.entropy is not None
        count = mask.sum()
        items = count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return total / items, told.entropy.sum(), count

    def _divergence(self, student: TokenRows, teacher: TokenRows, mask: Tensor) -> Tensor:
        for who, rows in (("model", student), ("teacher_model", teacher)):
            if rows.head is None:
                refuse(who, "an output layer that is a plain linear one", "another")
        assert student.head is not None
        assert teacher.head is not None
        further = {"beta": self.beta} if self.loss == "jensen_shannon" else {}
        return linear_distillation(
            student.source, student.head, teacher.source, teacher.head, divergence=self.loss, bias=student.bias,
            teacher_bias=teacher.bias, softcap=student.softcap, teacher_softcap=teacher.softcap,
            temperature=self.temperature, token_weight=mask.to(torch.float32), reduction="sum", **further,
        )  # fmt: skip

    def _rows(self, model: Any, inputs: Any) -> TokenRows:
        """Of the completion's tokens, each where it is predicted."""
        names = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes",
                 "token_type_ids", "mm_token_type_ids", "image_position_ids")  # fmt: skip
        given = {name: inputs[name] for name in names if name in inputs}
        given["input_ids"] = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        given["attention_mask"] = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        inner = inner_model(model)
        outputs = logits_stand_in(inner, functools.partial(inner, **given, use_cache=False))
        width = inputs["completion_ids"].shape[1]
        return token_rows(outputs.logits).at(slice(None), slice(-width - 1, -1))


def _in_pieces(objective: Any, student: TokenRows, teacher: TokenRows, tokens: Tensor, mask: Tensor) -> Tensor:
    """The sum of an objective over the tokens that count, a few at a time, formed again in the backward pass."""

    def of_piece(hidden: Tensor, of_teacher: Tensor, target: Tensor) -> Tensor:
        value: Tensor = objective(_logits(student, hidden), target, teacher=_logits(teacher, of_teacher))
        return value

    classes = (student.source if student.head is None else student.head.T).shape[-1]
    size = max(1, _ROWS // (4 * classes))
    pieces = zip(student.source[mask].split(size), teacher.source[mask].split(size), tokens[mask].split(size))
    values = [checkpoint(of_piece, *piece, use_reentrant=False) for piece in pieces if len(piece[2])]
    return torch.stack(values).sum() if values else student.source[mask].float().sum()  # of nothing, with a graph


def _logits(rows: TokenRows, hidden: Tensor) -> Tensor:
    if rows.head is None:
        return hidden
    z = nn.functional.linear(hidden, rows.head, rows.bias).float()
    return z if rows.softcap is None else rows.softcap * torch.tanh(z / rows.softcap)


def _counted(batch: Any) -> Tensor:
    """Tokens of completions that the loss is about."""
    mask: Tensor = batch["completion_mask"]
    return mask if "tool_mask" not in batch else mask * batch["tool_mask"]


def _aligned(value: Any, labels: Tensor) -> Any:
    """What belongs to tokens, where they are predicted; anything else as it is."""
    by_token = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == labels.shape
    return value[:, 1:] if by_token else value


def _segments(batch: Any) -> Tensor | None:
    """Which sequence of a packed row each label is of; None where rows aren't packed."""
    places = batch.get("position_ids")
    if places is None or places.ndim != 2 or "shift_labels" in batch:
        return None
    number: Tensor = (places == 0).cumsum(1) - 1
    return number.clamp_min(0)[:, 1:]


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return dict(inspect.signature(function).bind_partial(*args, **kwargs).arguments)


def _defaults(config: Any, names: Iterable[str]) -> None:
    """Refuse what a configuration sets and the loss decides."""
    fields = {field.name: field for field in dataclasses.fields(config)} if config is not None else {}
    for name in names:
        if name not in fields:
            continue
        field = fields[name]
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if getattr(config, name) != default:
            refuse(f"args.{name}", f"{default!r}, its default, since loss= decides", getattr(config, name))


def _check_pairs(loss: Any) -> None:
    """Refuse what is no mean of pairs under a policy and a reference."""
    expected = "a loss of pairs under a policy and a reference, or a name of one"
    if not isinstance(loss, LogProbabilityLoss):
        refuse_type("loss", expected, loss)
    parameters = inspect.signature(loss.forward).parameters.values()
    needed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    paired = not isinstance(loss, PreferenceLoss) or PREFERENCE_FORMS[loss.loss_type].paired
    if not paired or not set(needed) <= {"policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"}:
        refuse_type("loss", expected, loss)
    if getattr(loss, "reduction", "mean") != "mean":
        refuse("loss", 'reduction="mean"', f"reduction={loss.reduction!r}")


def _as_group(config: Any, loss: GroupPolicyLoss) -> None:
    """Write a loss into TRL's terms, for what it loads and logs."""
    if config.beta != loss.beta:
        _defaults(config, ("beta",))
    config.beta = loss.beta
    form = FORMS[loss.form]
    config.loss_type = "grpo" if loss.form == "gspo" else loss.form
    config.importance_sampling_level = form.level
    high = form.epsilon_high if loss.epsilon_high is None else loss.epsilon_high
    high = loss.epsilon if high is None else high
    config.epsilon, config.delta, config.use_bias_correction_kl = loss.epsilon, loss.delta, loss.weighted_kl
    config.epsilon_high = 1.0 + high if loss.form == "cispo" else high
