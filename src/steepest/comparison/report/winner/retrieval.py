"""The saved winner of a retrieval: a network that gives embeddings, beside those of the rows it was trained on."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ....core.lazy import late
from ....core.stored import Anything, Listed, Named, Record, Text, Whole, Word, inside, parse_json, read_json
from ...design.context import Context
from ...design.embeddings import RAW, Embedder
from ...design.folds import Fold
from ...design.levels import prefix
from ...design.models import find_model
from ...design.trials import seed_of
from ...errors import InputError
from ...own_parts import Trust
from ...read import Preprocessor
from ...read.images import Images, ImageScaler
from ...read.images.image_set import load_pixels
from ...read.images.raw import size_of
from ...read.images.source import SMALLEST
from ...read.inputs import Data, fit_inputs, restore, transform
from ...read.retrieval import RETRIEVAL
from ...read.task import LABEL_DTYPES, label_index
from ...scores.retrieval import NEIGHBOURS, nearest_rows
from ...work.cells import member_of, recipe_of
from ...work.training import train
from .bounded import Bounded
from .facts import FILE, check_inputs
from .files import SMALL, TENSORS, read_whole, said_by, winner_folder, write_whole

pd = late("pandas")

FORMAT = 1
KIND = RETRIEVAL
NETWORK, TRAINED, LABELS = "network.", "trained.embeddings", "trained.labels"
"""Names of tensors: before those of the network, and of the training rows."""
AT_ONCE = 4096
FACTS = Record(
    {
        "format": Word((FORMAT,)),
        "kind": Word((KIND,)),
        "objective": Text(),
        "hyper": Named(Anything()),
        "settings": Text(),
        "model": Text(),
        "embedding": Whole(1, 1 << 24),
        "width": Whole(low=1),
        "classes": Listed(Text(), least=2),
        "label_dtype": Word(LABEL_DTYPES),
        "target": Text(),
        "columns": Listed(Text()),
        "numeric": Listed(Text()),
        "preprocessing": Anything(),
        "pixels": Listed(Whole(1, 65_536), most=3),
        "epochs": Whole(1, 100_000),
        "weights": Text(),
    }
)
"""``winner.json`` of a network of embeddings."""


class RetrievalWinner:
    """What a comparison of retrieval found best, trained on all rows.

    Load with :meth:`load`; ``predict(rows)`` gives the nearest training rows and the embedding of each row.

    Args:
        facts: as in ``winner.json``, but the hash of the weights.
        network: prepared inputs to embeddings.
        prepared: makes inputs of rows.
        trained: embeddings of the training rows ``[N, d]``.
        labels: their class codes ``[N]``.
    """

    no_probabilities = "it gives embeddings and nearest rows"

    def __init__(
        self,
        facts: dict[str, Any],
        network: nn.Module,
        prepared: Preprocessor | ImageScaler,
        trained: Tensor,
        labels: Tensor,
    ) -> None:
        self.facts, self.network, self.prepared = facts, network.eval(), prepared
        self.trained, self.labels = trained, labels

    @property
    def name(self) -> str:
        """Of the objective."""
        return str(self.facts["objective"])

    @property
    def warnings(self) -> list[str]:
        """What there was to beware of in the rows predicted last, a line each."""
        return list(getattr(self.prepared, "warnings", ()))

    @property
    def predicted_columns(self) -> list[str]:
        """Names of the columns that :meth:`predict` gives before those of the embedding."""
        nearest = range(1, min(NEIGHBOURS, len(self.trained)) + 1)
        return [f"{what}_{place}" for place in nearest for what in ("index", "label", "cosine")]

    def save(self, folder: str | Path) -> None:
        """Write the tensors, then ``winner.json`` with their hash, each in one step."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {NETWORK + name: tensor for name, tensor in self.network.state_dict().items()}
        tensors = {**state, TRAINED: self.trained, LABELS: self.labels}
        digest = write_whole(
            folder / TENSORS, save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})
        )
        text = json.dumps({**self.facts, "weights": digest}, indent=1, allow_nan=False)
        write_whole(folder / FILE, text.encode())

    @classmethod
    def load(cls, folder: str | Path, *, trust: Trust = False) -> Self:
        """Read a winner's folder; nothing in it is taken unchecked.

        Args:
            folder: of the winner, or of the run that holds it.
            trust: whether a network of somebody's own (``module:name``) may be imported, which runs that code.

        Raises:
            InputError: there is none, it is not whole, or needs ``trust``.
        """
        folder = winner_folder(folder)
        facts = read_json(folder / FILE, "no saved winner")
        FACTS.check(facts, FILE)
        try:
            prepared = restore(facts["preprocessing"], inside(FILE, "preprocessing"))
            check_inputs(facts, prepared)
            tensors = load(read_whole(folder, TENSORS, facts["weights"]))
            trained, labels = _rows(facts, tensors)
            network = _network(facts, tensors, trust)
            winner = cls(facts, network, prepared, trained, labels)
            winner._try_out()
        except Exception as error:  # whatever a file makes a network raise
            said = said_by(error)
            known = isinstance(error, InputError) and ("saved winner" in said or "trust" in said)
            raise InputError(said if known else f"the saved winner in {str(folder)!r} is not whole: {said}") from error
        return winner

    def _try_out(self) -> None:
        """Embed two average rows: shapes that don't go together show here."""
        pixels = self.facts["pixels"]
        if self.name == RAW and self.facts["embedding"] != self.facts["width"] * math.prod(pixels[:2]):
            raise InputError(f"embedding: expected as many numbers as an input has, got {self.facts['embedding']}")
        inputs = torch.zeros(2, self.facts["width"], *pixels[:2])
        embeddings = self._embeddings(inputs)
        if embeddings.shape != (2, self.facts["embedding"]) or not bool(embeddings.isfinite().all()):
            raise InputError(f"expected {self.facts['embedding']} finite numbers of a row")

    def _embeddings(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.network(chunk).float() for chunk in inputs.split(AT_ONCE)])

    def embed(self, rows: Any) -> np.ndarray:
        """Embeddings ``[N, d]`` float32 of rows as :meth:`predict` takes them.

        Raises:
            InputError: a column is missing, images of another size, or a row that lies so far out that no finite number
                comes out.
        """
        if isinstance(self.prepared, ImageScaler):
            rows = np.asarray(rows)
            if rows.ndim == 4 and list(rows.shape[1:]) != self.facts["pixels"]:
                expected = size_of(self.facts["pixels"])
                raise InputError(f"expected images of {expected}, as they were compared, got {size_of(rows.shape[1:])}")
        return self._of_inputs(self.prepared.transform(rows))

    def _of_inputs(self, inputs: Any) -> np.ndarray:
        values: np.ndarray = self._embeddings(torch.as_tensor(inputs, dtype=torch.float32)).numpy()
        finite = np.isfinite(values).all(1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0]) + 1
            raise InputError(
                f"row {row}: the winner gives no finite number; its inputs lie too far from the training rows"
            )
        return values

    def predict(self, rows: Any) -> pd.DataFrame:
        """The nearest training rows and the embedding of each row.

        Args:
            rows: a frame with the columns ``facts["columns"]``, others are ignored; an array with these columns; a
                path; or images uint8 ``[N, H, W, C]``.

        Returns:
            ``index_K``, ``label_K`` and ``cosine_K`` for the K-th nearest training row, K from 1 to 5: its number among
            the rows that were compared, from 0 on, its label and its cosine, equal ones in the order of rows; then
            ``e_1 .. e_d``. The row labels are those of a frame.
        """
        frame = self._predictions(self.embed(rows))
        return frame.set_axis(rows.index) if isinstance(rows, pd.DataFrame) else frame

    def _predictions(self, embeddings: np.ndarray) -> pd.DataFrame:
        places, cosines = nearest_rows(torch.from_numpy(embeddings), self.trained)
        labels = label_index(self.facts["classes"], self.facts["label_dtype"])
        columns: dict[str, Any] = {}
        for rank in range(places.shape[1]):
            columns[f"index_{rank + 1}"] = places[:, rank].numpy()
            columns[f"label_{rank + 1}"] = labels.take(self.labels[places[:, rank]].numpy())
            columns[f"cosine_{rank + 1}"] = cosines[:, rank].numpy()
        columns |= {f"e_{number + 1}": values for number, values in enumerate(embeddings.T)}
        return pd.DataFrame(columns)

    def predict_file(self, path: str | Path, **reading: Any) -> pd.DataFrame:
        """:meth:`predict` for a file, or for images, resized as they were compared.

        Args:
            path: of the file.
            **reading: encoding, separator and header, where they cannot be found by themselves.
        """
        if isinstance(self.prepared, ImageScaler):
            height, width, _ = self.facts["pixels"]
            size = height if height == width >= SMALLEST else None
            return self.predict(load_pixels(path, size=size))
        return self._predictions(self._of_inputs(self.prepared.transform(self.prepared.rows(path, **reading))))


def _rows(facts: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings and class codes of the training rows, taken out of the tensors."""
    missing = [name for name in (TRAINED, LABELS) if name not in tensors]
    if missing:
        raise InputError(f"{TENSORS} lacks the tensor {missing[0]!r}")
    trained, labels = tensors.pop(TRAINED), tensors.pop(LABELS)
    if trained.dtype != torch.float32 or trained.ndim != 2 or trained.shape[1] != facts["embedding"]:
        raise InputError(f"{TENSORS}: {TRAINED!r}: expected rows of {facts['embedding']} float32 numbers")
    if not len(trained) or not bool(trained.isfinite().all()):
        raise InputError(f"{TENSORS}: {TRAINED!r} holds values that are not finite: its training diverged")
    whole = labels.dtype == torch.int64 and labels.shape == trained.shape[:1]
    if not whole or int(labels.min()) < 0 or int(labels.max()) >= len(facts["classes"]):
        raise InputError(f"{TENSORS}: {LABELS!r}: expected a class of 0..{len(facts['classes']) - 1} for each row")
    return trained, labels


def _network(facts: dict[str, Any], tensors: dict[str, Tensor], trust: Trust) -> nn.Module:
    """The network that the facts describe, with these tensors, built within the memory that they take."""
    if facts["objective"] == RAW:
        return nn.Flatten()
    backbone = find_model(facts["model"], trust=trust)
    largest = max((tensor.numel() for tensor in tensors.values()), default=0)
    bounded = nullcontext() if ":" in facts["model"] else Bounded(max(SMALL, largest))
    with torch.random.fork_rng(devices=[]), bounded:
        network = Embedder(backbone, facts["embedding"], tuple(facts["pixels"][:2]))(facts["width"])
    wrong = next((name for name in tensors if not name.startswith(NETWORK)), None)
    if wrong is not None:
        raise InputError(f"{TENSORS} has an unknown tensor {wrong[:80]!r}")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise InputError(f"{TENSORS} holds values that are not finite: its training diverged")
    network.load_state_dict({name.removeprefix(NETWORK): tensor for name, tensor in tensors.items()})
    return network


def fit_retrieval_winner(
    context: Context, name: str, number: int, *, rows: int | None = None, ends_at: float = math.inf
) -> RetrievalWinner:
    """Train what inner validation picks on all classes; how long, classes that are held out once more say.

    Args:
        context: of the comparison, at the level of the cells that choose.
        name, number: the objective and its trial.
        rows: that it is trained on at most; None is as in the comparison. All rows are embedded nevertheless.
        ends_at: when it has to be trained, by the system's clock.

    Raises:
        OutOfTime: it is not by then.
    """
    table = context.table
    whole = Context(table, replace(context.settings))
    pair = (context.settings.repeats + 1, 0)
    positions = np.arange(len(table.target))
    if context.capped or rows is not None:
        most = context.most_rows if context.capped else len(positions)
        seed = seed_of(context.settings.seed, *pair, "prefix")
        positions = prefix(positions, table.target, most if rows is None else min(most, rows), seed)
    whole._folds = {pair: Fold(*pair, positions, positions[:1])}
    trial, cls = whole.trials(name)[number], whole.objective(name)
    over = None if math.isinf(ends_at) else lambda: time.time() >= ends_at
    recipe = recipe_of(whole, cls, over)
    epochs = recipe.epochs
    with torch.random.fork_rng(devices=[]):
        if not recipe.fixed_length:
            tuned = [member_of(whole, pair, inner, trial) for inner in range(len(whole.inner(pair)))]
            train(recipe, tuned)
            epochs = max(1, round(float(np.mean([own.epochs for own in tuned]))))
        final = member_of(whole, pair, -1, trial, length=epochs)
        train(recipe, [final])
        network = recipe.backbone(int(final.split.inputs.shape[1]))
    assert final.state is not None
    network.load_state_dict(
        {key.removeprefix("backbone."): own for key, own in final.state.items() if key.startswith("backbone.")}
    )
    return _winner(
        table,
        fit_inputs(table, positions),
        network,
        objective=name,
        hyper=trial.hyper,
        settings=trial.describe(),
        model=whole.settings.model,
        embedding=whole.settings.embedding,
        epochs=epochs,
    )


def raw_winner(context: Context) -> RetrievalWinner:
    """The prepared inputs themselves, where no embedding is better."""
    table = context.table
    prepared = fit_inputs(table, np.arange(len(table.target)))
    numbers = transform(prepared, table, np.arange(1)).flatten(1).shape[1]
    facts = {"objective": RAW, "hyper": {}, "settings": "", "model": RAW, "embedding": numbers, "epochs": 1}
    return _winner(table, prepared, nn.Flatten(), **facts)


def _winner(table: Data, prepared: Preprocessor | ImageScaler, network: nn.Module, **own: Any) -> RetrievalWinner:
    """A winner that knows the rows of a table."""
    facts = {
        "format": FORMAT,
        "kind": KIND,
        **own,
        "width": len(prepared.mean) if isinstance(prepared, ImageScaler) else prepared.width,
        "classes": list(table.classes),
        "label_dtype": getattr(table, "label_dtype", "str"),
        "target": table.target_name,
        "columns": prepared.columns if isinstance(prepared, Preprocessor) else [],
        "numeric": prepared.numeric if isinstance(prepared, Preprocessor) else [],
        "preprocessing": prepared.to_json(),
        "pixels": list(table.pixels.shape[1:]) if isinstance(table, Images) else [],
    }
    empty = torch.zeros(0, own["embedding"]), torch.zeros(0, dtype=torch.int64)
    winner = RetrievalWinner(parse_json(json.dumps(facts), FILE), network, prepared, *empty)
    pieces = np.array_split(np.arange(len(table.target)), -(-len(table.target) // AT_ONCE))
    winner.trained = torch.cat([winner._embeddings(transform(prepared, table, rows)) for rows in pieces])
    winner.labels = torch.as_tensor(table.target, dtype=torch.int64)
    return winner
