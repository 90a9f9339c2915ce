"""Ranks of gloo: parts of the vocabulary, shares of the tokens, DTensors and FSDP2 give what one rank gives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from steepest.kernels import VocabularyShard, linear_cross_entropy, token_statistics

WORKER = Path(__file__).with_name("ranks_worker.py")
FAST = (
    "every_option_alone",
    "parts_of_any_size",
    "statistics_with_ties",
    "nothing_counts",
    "nothing_is_remembered",
    "a_shard_saves_the_asking",
    "refusals_come_to_all_ranks",
    "shares_of_the_tokens",
    "shares_of_tokens_and_vocabulary",
    "tokens_over_one_dimension_vocabulary_over_the_other",
    "placed_weight_beside_plain_hidden",
    "averaged_by_data_parallel",
    "fully_sharded_head",
    "sharded_twice",
    "same_bits",
    "statistics_of_parts",
    "statistics_of_any_parts",
    "statistics_of_shares",
    "confident_rows_on_ranks",
    "nothing_to_count_on_ranks",
    "loss_of_statistics_on_ranks",
    "statistics_refused_on_all_ranks",
    "pairs_of_all_ranks",
)
SLOW = ("every_pair_of_options", "half_types", "shares_with_every_option", "placed_tensors", "fully_sharded_heads")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "GLOO_SOCKET_IFNAME": "lo"}


def start(folder: Path, *cases: str) -> subprocess.Popen[str]:
    """Four ranks that run cases."""
    command = [sys.executable, str(WORKER), "4", str(folder), *cases]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(folder: Path, *cases: str) -> dict[str, list[str]]:
    """What went wrong in each case, by rank."""
    output, _ = start(folder, *cases).communicate(timeout=600)
    found = {}
    for case in cases:
        files = [folder / f"{case}.{rank}.json" for rank in range(4)]
        found[case] = [json.loads(f.read_text()) if f.exists() else f"not run: {output[-2000:]}" for f in files]
    return found


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """The quick cases, run once by one set of ranks."""
    return run(tmp_path_factory.mktemp("fast"), *FAST)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """The others."""
    return run(tmp_path_factory.mktemp("slow"), *SLOW)


@pytest.mark.parametrize("case", FAST)
def test_two_and_four_ranks_are_one(fast, case):
    assert fast[case] == [""] * 4, "\n".join(fast[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_more_of_the_same(slow, case):
    assert slow[case] == [""] * 4, "\n".join(slow[case])


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("where", ["forward", "backward", "asking", "tokens"])
def test_a_dead_rank_ends_in_an_error(tmp_path, how, where):
    """The last rank dies; the others' collectives end within the group's timeout of 5 s."""
    (tmp_path / "fate").write_text(f"{int(how)} {where}")
    process = start(tmp_path, "one_rank_dies")
    until = time.monotonic() + 120
    told = [tmp_path / f"one_rank_dies.{rank}.json" for rank in range(3)]
    try:
        while time.monotonic() < until and not all(each.exists() for each in told):
            time.sleep(0.1)
        found = [json.loads(each.read_text()) if each.exists() else "hangs" for each in told]
    finally:
        stopped = tmp_path / "pid"
        if stopped.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(stopped.read_text()), signal.SIGKILL)
        process.communicate(timeout=120)
    assert found == [""] * 3, "\n".join(found)


def test_groups_are_refused_under_compile():
    def loss(hidden, weight, target):
        return linear_cross_entropy(hidden, weight, target, process_group=VocabularyShard(None, 0, 5))

    with pytest.raises(Exception, match="call the loss outside"):
        torch.compile(loss, fullgraph=True, backend="eager")(torch.ones(3, 4), torch.ones(5, 4), torch.arange(3))


def test_statistics_of_a_group_are_refused_under_compile_and_transforms():
    shard, labels = VocabularyShard(None, 0, 5), torch.arange(3)

    def total(hidden):
        return token_statistics(hidden, labels, torch.ones(5, 4), group=shard).log_z.sum()

    with pytest.raises(ValueError, match="and transforms"):
        torch.func.grad(total)(torch.ones(3, 4))
    with pytest.raises(Exception, match="and transforms"):
        torch.compile(total, fullgraph=True, backend="eager")(torch.ones(3, 4))
