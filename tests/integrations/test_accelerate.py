"""The recipe for loops with accelerate: what the guide shows comes to what a loop written out comes to."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

accelerate = pytest.importorskip("accelerate")

from steepest.optim import SAM  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from by_hand import RHO, Net, data, same, train, windows  # noqa: E402

sys.path.pop(0)

SGD = {"lr": 0.25, "momentum": 0.5}


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps one state a process."""
    state = pytest.importorskip("accelerate.state").AcceleratorState
    state._reset_state(reset_partial_state=True)
    yield
    state._reset_state(reset_partial_state=True)


def recipe(net, steps, scale=None, share=lambda window: window):
    """The loop of the guide."""
    accelerator = accelerate.Accelerator(cpu=True)
    if scale is not None:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    model = accelerator.prepare(net)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=RHO, **SGD)
    optimizer.base_optimizer.register_step_pre_hook(
        lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 0.5) and None
    )
    log = []
    for number, window in enumerate(steps):
        torch.manual_seed(number)
        batches = share(window)

        def closure(batches=batches):
            optimizer.zero_grad()
            total = torch.zeros(())
            for place, batch in enumerate(batches, start=1):
                last = place == len(batches)
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    loss = model(**batch)["loss"] / len(batches)
                    accelerator.backward(loss)
                total = total + loss.detach()
            return total

        log.append(optimizer.step(closure, scaler=accelerator.scaler))
        if accelerator.scaler is not None:
            accelerator.scaler.update()
    return accelerator, optimizer, log


@pytest.mark.parametrize("accumulation", [1, 4])
def test_sam_is_that_of_a_loop_written_out(accumulation):
    net, twin = Net(), Net()
    _, _, log = recipe(net, windows(data(), 4, accumulation, 6))
    base = torch.optim.SGD(twin.parameters(), **SGD)
    wanted = train(twin, base, windows(data(), 4, accumulation, 6), clip=0.5)
    same(net, twin)
    assert [loss.item() for loss in log] == pytest.approx([loss for loss, _ in wanted])
    assert max(length for _, length in wanted) > 0.5


def test_a_scaler():
    nets = [Net(), Net()]
    for net, scale in zip(nets, (None, 1024.0)):
        recipe(net, windows(data(), 4, 2, 4), scale)
    same(*nets, exact=True)


@pytest.mark.parametrize("call", [2, 3], ids=["first pass", "second pass"])
def test_an_overflow_in_either_pass_skips_the_step(call):
    net, twin = Net(), Net()
    net.inf_at = (call,)
    accelerator, optimizer, _ = recipe(net, windows(data(), 4, 1, 2), 1024.0)
    train(twin, torch.optim.SGD(twin.parameters(), **SGD), windows(data(), 4, 1, 1), clip=0.5)
    same(net, twin)
    assert (optimizer.skipped, accelerator.scaler.get_scale()) == (1, 512.0)


@pytest.mark.slow
def test_two_ranks(tmp_path):
    """Rank r has rows r and 2 + r of each two: the mean over ranks is that over all rows."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        number = port.getsockname()[1]
    ranks = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": number}
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}, "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, __file__, str(rank), str(tmp_path)]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in ranks:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    twin = Net(plain=True)
    train(twin, torch.optim.SGD(twin.parameters(), **SGD), windows(data(), 4, 2, 4), clip=0.5)
    for name, wanted in twin.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], wanted, rtol=1e-9, atol=1e-12, msg=name)


if __name__ == "__main__":
    place, folder = int(sys.argv[1]), Path(sys.argv[2])
    network = Net(plain=True)
    halves = lambda window: [{k: v[place::2] for k, v in batch.items()} for batch in window]  # noqa: E731
    used, _, _ = recipe(network, windows(data(), 4, 2, 4), share=halves)
    assert used.num_processes == 2
    torch.save(network.state_dict(), folder / f"{place}.pt")
