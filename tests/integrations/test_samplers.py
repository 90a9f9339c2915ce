"""Samplers of batches under other people's loops: accelerate cuts batches over ranks, Lightning tells epochs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from steepest.data.sampling import CooldownSampler

IDS = torch.tensor([0] * 20 + [1] * 4)


def loader(**options):
    sampler = CooldownSampler(IDS, 4, 18, seed=1, **options)
    return DataLoader(TensorDataset(torch.arange(24)), batch_sampler=sampler), sampler


def plain(epochs=3):
    sampler = CooldownSampler(IDS, 4, 18, seed=1)
    return [list(sampler) for _ in range(epochs)]


@pytest.mark.slow
def test_accelerate_gives_every_rank_its_batches_of_every_epoch():
    data_loader = pytest.importorskip("accelerate.data_loader")
    ranks = []
    for rank in range(2):
        prepared = data_loader.prepare_data_loader(
            loader()[0], device=torch.device("cpu"), num_processes=2, process_index=rank, put_on_device=False,
            rng_types=[],
        )  # fmt: skip
        ranks.append([[rows.tolist() for (rows,) in prepared] for _ in range(3)])
    for epoch, wanted in enumerate(plain()):
        assert [batch for pair in zip(ranks[0][epoch], ranks[1][epoch]) for batch in pair] == wanted


@pytest.mark.slow
def test_lightning_tells_the_epoch_and_replaces_nothing_silently():
    lightning = pytest.importorskip("lightning")
    seen = []

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, number):
            seen.append((self.current_epoch, batch[0].tolist()))
            return self.layer(batch[0][:, None].float()).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    options = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False,
    }  # fmt: skip
    lightning.Trainer(max_epochs=3, **options).fit(Model(), loader()[0])
    wanted = [(epoch, batch) for epoch, batches in enumerate(plain()) for batch in batches]
    assert seen == wanted
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from lightning.pytorch.utilities.data import _get_dataloader_init_args_and_kwargs

    data, sampler = loader()
    _set_sampler_epoch(data, 7)
    assert sampler.epoch == 7
    with pytest.raises(TypeError):  # it may not take the place of what we draw
        _get_dataloader_init_args_and_kwargs(data, torch.utils.data.SequentialSampler(data.dataset))
