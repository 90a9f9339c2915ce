"""Language models of Transformers with a loss whose logits never exist as a whole, and a Trainer for steps of our own.

>>> import torch
>>> from transformers import LlamaConfig, LlamaForCausalLM
>>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
>>> config = LlamaConfig(vocab_size=64, **sizes)
>>> model = patch(LlamaForCausalLM(config), z_loss=1e-4).train()
>>> tokens = torch.randint(64, (2, 8))
>>> outputs = model(input_ids=tokens, labels=tokens)
>>> outputs.loss.backward()
>>> outputs.logits is None, unpatch(model)(input_ids=tokens).logits.shape
(True, torch.Size([2, 8, 64]))
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.checks import check_tensor, refuse, refuse_type
from ..kernels import GradientFilter, linear_cross_entropy
from ._lazy_logits import LazyLogits, Use
from ._output_layer import inner_model, output_layer, parts_with_layers, standing_in

__all__ = ["RecorderCallback", "SteepestTrainer", "StepsMixin", "patch", "patched", "unpatch"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name in ("SteepestTrainer", "StepsMixin"):  # a Trainer takes seconds to import
        from . import _trainer

        return getattr(_trainer, name)
    if name == "RecorderCallback":
        from ._trainer_callback import RecorderCallback

        return RecorderCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


M = TypeVar("M", bound=nn.Module)
_STATE = "_steepest_head"


@dataclass
class _State:
    """What a patched model keeps.

    Args:
        objective: options that change the loss; they hold while training.
        way: options that don't.
        logits: whether outputs have logits; None for outside training only.
    """

    objective: dict[str, Any]
    way: dict[str, Any]
    logits: bool | None
    told: set[str] = field(default_factory=set)

    def warn(self, text: str) -> None:
        """Say it once a model."""
        if text not in self.told:
            self.told.add(text)
            warnings.warn(text, stacklevel=6)


def patch(
    model: M,
    *,
    logits: bool | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    class_weight: Tensor | None = None,
    memory: str | int | float = "auto",
    accumulate: str = "fp32",
    compute_dtype: torch.dtype | None = None,
    filter: str | float | GradientFilter | None = None,
    empty: str = "nan",
) -> M:
    r"""Let a language model take its loss from hidden states and output layer, without a matrix of tokens by classes.

    The forward pass and the loss function stay the model's own: shifts, ignored labels, ``num_items_in_batch``,
    ``shift_labels``, softcaps and scales of logits, auxiliary losses of experts and whatever else they do. While it
    trains with ``labels``, the output layer hands on hidden states that stand for logits, and
    ``torch.nn.functional.cross_entropy`` of those is :func:`~steepest.kernels.linear_cross_entropy`: the same loss and
    gradients, up to rounding. Without ``labels``, and outside training unless ``logits=False``, nothing changes.

    What does something else with its logits gets them formed, and a warning says so once: output layers under LoRA or
    quantised, with hooks, or with sharded weights. A model that is compiled as a whole forms them too, without a
    warning; compile what comes before its output layer, as by ``model.model.compile()``.

    Args:
        model: with ``labels`` in its forward pass and output embeddings, its own or those of one part (BLIP), or a
            wrapper of one (PEFT, ``DistributedDataParallel``). A model that is patched already gets these options.
        logits: whether outputs have logits where there are labels. None: not while training, as they were otherwise.
            True: always, with their graph. False: never; ``Trainer`` then needs ``prediction_loss_only=True``.
        label_smoothing: in [0, 1]; while training, as all that changes the loss.
        z_loss: >= 0, the weight of log^2 Z; while training.
        class_weight: ``[V]`` >= 0; while training.
        memory, accumulate, compute_dtype, filter, empty: of :func:`~steepest.kernels.linear_cross_entropy`.

    Returns:
        ``model`` itself. Its parameters, ``state_dict`` and the name of its class stay; it can be copied and pickled.

    Raises:
        TypeError: no model with output embeddings; the error names parts of it that are.
        ValueError: a model without an output layer over a vocabulary, an option out of range.
        RuntimeError: while training: ``label_smoothing``, ``z_loss`` or ``class_weight`` where the loss isn't taken
            from the output layer in the way described.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16))
        >>> tokens = torch.arange(8).unsqueeze(0)
        >>> patch(model).train()(input_ids=tokens, labels=tokens).loss.shape
        torch.Size([])

    Source: Cut Your Losses in Large-Vocabulary Language Models, arXiv:2411.09009.
    """
    inner = inner_model(model)
    classes = _classes(inner)
    if logits not in (None, True, False):
        refuse("logits", "None, True or False", logits)
    if class_weight is not None:
        check_tensor("class_weight", class_weight, floating=True, shape=(classes,))
    objective: dict[str, Any] = {}
    if label_smoothing:
        objective["label_smoothing"] = label_smoothing
    if z_loss:
        objective["z_loss"] = z_loss
    if class_weight is not None:
        objective["class_weight"] = class_weight.detach()
    way = {"memory": memory, "accumulate": accumulate, "filter": GradientFilter.of(filter), "empty": empty}
    way["compute_dtype"] = compute_dtype
    one = torch.zeros(1, 1)  # the kernel checks its options
    told = {"label_smoothing": label_smoothing, "z_loss": z_loss, **way}
    linear_cross_entropy(one, one.expand(classes, 1), torch.zeros(1, dtype=torch.long), **told)
    inner.__dict__[_STATE] = _State(objective, way, logits)
    kind: Any = type(inner)
    if not hasattr(kind, "_steepest_base"):
        inner.__class__ = _class(kind)
    return model


def unpatch(model: M) -> M:
    """Give a model that :func:`patch` changed its own forward pass back; others stay as they are.

    Args:
        model: as :func:`patch` takes it.

    Returns:
        ``model`` itself.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16))
        >>> type(unpatch(patch(model))) is GPT2LMHeadModel
        True
    """
    inner = inner_model(model)
    inner.__dict__.pop(_STATE, None)
    if "_steepest_base" in vars(type(inner)):
        inner.__class__ = type(inner)._steepest_base
    return model


@contextmanager
def patched(model: M, **options: Any) -> Iterator[M]:
    """:func:`patch` within a ``with`` block; afterwards the model is as it was, patched or not.

    Args:
        model: as :func:`patch` takes it.
        options: of :func:`patch`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16)).train()
        >>> tokens = torch.arange(8).unsqueeze(0)
        >>> with patched(model, memory=2**20):
        ...     print(model(input_ids=tokens, labels=tokens).logits)
        None
    """
    before = inner_model(model).__dict__.get(_STATE)
    patch(model, **options)
    try:
        yield model
    finally:
        if before is None:
            unpatch(model)
        else:
            inner_model(model).__dict__[_STATE] = before


def _classes(model: Any) -> int:
    """The size of the vocabulary; refuses what has none or takes no labels, and names parts that would do."""
    if not (hasattr(model, "get_output_embeddings") and hasattr(model, "forward")):
        refuse_type("model", "a language model of Transformers" + _advice(model), type(model).__name__)
    head = output_layer(model)
    weight = getattr(head, "weight", None)
    if head is None or "labels" not in inspect.signature(model.forward).parameters:
        expected = "an output layer over a vocabulary, and labels in forward" + _advice(model)
        refuse("model", expected, type(model).__name__)
    if "forward" in vars(model) and not hasattr(inspect.unwrap(model.forward), _STATE):
        refuse(
            "model",
            "the forward pass of its class: patch it before accelerate prepares or dispatches it",
            model.forward,
        )
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else int(model.config.vocab_size)


def _advice(model: Any) -> str:
    """The parts that can be patched, for an error."""
    calls = [
        f"patch(model.{name})"
        for name, module in parts_with_layers(model).items()
        if "labels" in inspect.signature(module.forward).parameters
    ]
    return f" (a part of it has them: {', '.join(calls)})" if calls else ""


@functools.cache
def _class(base: Any) -> Any:
    """``base`` with a forward pass that asks the state of the instance: copies and replicas keep their own."""
    own = base.forward
    signature = inspect.signature(own)
    place = list(signature.parameters).index("labels") - 1

    @functools.wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: _State | None = self.__dict__.get(_STATE)
        labels = args[place] if len(args) > place else kwargs.get("labels")
        if state is None or labels is None or (state.logits is None and not self.training):
            return own(self, *args, **kwargs)
        use = Use({**state.way, **(state.objective if self.training else {})})
        if torch.compiler.is_compiling():
            outputs = own(self, *args, **kwargs)
        else:
            with standing_in(self, use, state.warn):
                outputs = own(self, *args, **kwargs)
            _report(self, state, use)
        if self.training and state.objective and not use.fused:
            raise RuntimeError(
                f"{', '.join(state.objective)}: the loss of {type(self).__name__} is not taken from its output layer "
                "by torch.nn.functional.cross_entropy here, so that these options have no place"
            )
        return _outputs(outputs, bool(state.logits))

    # accelerate unwraps whatever names what it wraps
    del forward.__wrapped__
    vars(forward).update({"__signature__": signature, _STATE: True})

    def reduce_ex(self: Any, protocol: Any) -> Any:
        reduced = super(changed, self).__reduce_ex__(protocol)
        return (_new, (base,), *reduced[2:])

    about = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    changed: Any = type(base.__name__, (base,), {**about, "forward": forward, "_steepest_base": base})
    changed.__reduce_ex__ = reduce_ex
    return changed


def _new(base: Any) -> Any:
    """An empty patched model, for copies and pickles."""
    kind = _class(base)
    return kind.__new__(kind)


def _report(model: Any, state: _State, use: Use) -> None:
    """Say what stood in the way, and refuse what would lose gradients."""
    if use.fused or not use.formed:
        return
    why = ", ".join(dict.fromkeys(use.formed))
    name = type(model).__name__
    if torch.is_grad_enabled() and not use.differentiable:
        raise RuntimeError(
            f"the loss of {name} forms logits for {why} where no gradient is recorded; unpatch the model"
        )
    state.warn(f"the loss of {name} is more than the cross-entropy of a linear layer: logits are formed for {why}")


def _outputs(value: Any, formed: bool) -> Any:
    """Outputs with logits, or without: None in tuples, absent in outputs by name."""
    if isinstance(value, LazyLogits):
        return value.formed("outputs") if formed else None
    if isinstance(value, Mapping) and any(isinstance(item, LazyLogits) for item in value.values()):
        items = {name: _outputs(item, formed) for name, item in value.items()}
        return type(value)(**{name: item for name, item in items.items() if item is not None})
    return tuple(_outputs(item, formed) for item in value) if type(value) is tuple else value
