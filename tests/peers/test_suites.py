"""What answers to other libraries' names: right numbers on small inputs, and no failure that nobody explained."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

HERE = Path(__file__).parent / "suites"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("suites_run", HERE / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def names(run, tmp_path):
    def find(library, name):
        module, _, attribute = name.rpartition(".")
        return run.adapter(library).modules(tmp_path)[module][attribute]

    return find


@pytest.fixture
def head():
    x, w, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 4), (9, 4), (9,)))
    y = torch.randint(9, (6,))
    y[2] = -100
    return x, w, b, y


def same(ours, theirs, *leaves):
    upstream = torch.rand_like(theirs)
    torch.testing.assert_close(ours, theirs, check_dtype=False)
    for leaf in leaves:
        pair = (torch.autograd.grad(each, leaf, upstream, retain_graph=True)[0] for each in (ours, theirs))
        torch.testing.assert_close(*pair)


def test_cce(names, head):
    x, w, b, y = head
    z = x @ w.T + b
    loss, lse = names("cce", "cut_cross_entropy.linear_cross_entropy")(x, w, y, bias=b, return_lse=True)
    same(loss, functional.cross_entropy(z, y), x, w, b)
    valid = y >= 0
    penalty = names("cce", "cut_cross_entropy.utils.compute_z_loss")
    same(penalty(lse, y), z.logsumexp(1)[valid].square().mean(), x, w, b)
    torch.testing.assert_close(
        penalty(torch.tensor([3.0, 4.0]), torch.tensor([0, -100, 1]), 1, reduction="sum").item(), 16.0
    )
    capped = 2 * torch.tanh(z / 2)
    found = names("cce", "cut_cross_entropy.cce_lse_forward.cce_lse_forward_kernel")(x, w, b, softcap=2.0)
    torch.testing.assert_close(found, capped.logsumexp(1))
    inds = y.clamp(min=0)
    found = names("cce", "cut_cross_entropy.indexed_dot.indexed_neg_dot_forward_kernel")(x, w, inds, b, softcap=2.0)
    torch.testing.assert_close(found, -capped.gather(1, inds.unsqueeze(1)).squeeze(1))
    parts = [names("cce", "cut_cross_entropy.vocab_parallel.utils.partition_n_into_range")(11, r, 4) for r in range(4)]
    assert parts == [(0, 3), (3, 6), (6, 9), (9, 11)]


def test_torchtune(names, head):
    x, w, _, y = head
    loss = names("torchtune", "torchtune.modules.loss.LinearCrossEntropyLoss")()
    model = torch.nn.Module()
    model.output = torch.nn.Linear(4, 9, dtype=torch.float64)
    loss.set_model_output(model)
    same(loss(x[None], y[None]), functional.cross_entropy(model.output(x), y), x, model.output.weight)
    s, t = ((x @ w.T)[None], torch.randn(1, 6, 9, dtype=torch.float64))
    chunks = [each.tensor_split(3, dim=1) for each in (s, t)]
    log_s, p, log_t = s.log_softmax(-1), t.softmax(-1), t.log_softmax(-1)
    valid = (y >= 0)[None]
    expected = {
        "Forward": -(p * log_s).sum(-1)[valid].mean(),
        "Reverse": (log_s.exp() * (log_s - log_t)).sum(-1)[valid].mean(),
    }
    expected["Symmetric"] = (expected["Forward"] + expected["Reverse"]) / 2
    for name, value in expected.items():
        for kind, given in (("KLLoss", (s, t)), ("KLWithChunkedOutputLoss", chunks)):
            same(names("torchtune", f"torchtune.modules.loss.{name}{kind}")()(*given, y[None]), value, x, w)
    plain = names("torchtune", "torchtune.modules.loss.CEWithChunkedOutputLoss")()
    same(plain(chunks[0], y[None]), functional.cross_entropy(s[0], y), x, w)


def test_quack(names, head):
    x, w, _, y = head
    for name in ("chunked_linear_cross_entropy", "scaled_exp_linear_cross_entropy"):
        ours = names("quack", f"quack.linear_cross_entropy.{name}")(x, w, y, chunk_size=2, reduction="sum")
        same(ours, functional.cross_entropy(x @ w.T, y, reduction="sum"), x, w)
    reference = names("quack", "quack.linear_cross_entropy.linear_cross_entropy_func_ref")
    same(reference(x, w, None, y), functional.cross_entropy(x @ w.T, y), x, w)


def test_liger(names, head):
    x, w, b, y = head
    z = x @ w.T + b
    weights, valid = torch.rand(9, dtype=torch.float64), y >= 0
    ours = names("liger", "liger_kernel.transformers.functional.liger_fused_linear_cross_entropy")
    asked = {"return_z_loss": True, "return_token_accuracy": True, "return_predicted_tokens": True}
    found = ours(x, w, y, b, ce_weight=weights, lse_square_scale=0.1, label_smoothing=0.2, **asked)
    penalty = 0.1 * z.logsumexp(1)[valid].square().mean()
    same(found.loss, functional.cross_entropy(z, y, weights, label_smoothing=0.2) + penalty, x, w, b)
    torch.testing.assert_close(found.z_loss, penalty.detach())
    assert found.predicted_tokens.tolist() == z.argmax(1).where(valid, -1).tolist()
    torch.testing.assert_close(found.token_accuracy.double(), (z.argmax(1) == y)[valid].double().mean())
    own = z.softmax(1).gather(1, y.clamp(min=0)[:, None]).squeeze(1).detach() * valid
    scaled = own * functional.cross_entropy(z, y, reduction="none")
    same(ours(x, w, y, b, use_token_scaling=True), scaled.sum() / valid.sum(), x, w, b)
    same(ours(x, w, y, b, use_token_scaling=True, reduction="none"), scaled, x, w, b)
    module = names("liger", "liger_kernel.transformers.fused_linear_cross_entropy.LigerFusedLinearCrossEntropyLoss")
    same(module(softcap=3.0)(w, x, y, b), functional.cross_entropy(3 * torch.tanh(z / 3), y), x, w, b)


def test_ligers_scaled_loss_and_distillation(names, head):
    x, w, _, y = head
    valid, log_p = y >= 0, (x @ w.T / 0.7).log_softmax(1)
    ours = names("liger", "liger_kernel.ops.LigerFusedLinearScaledCrossEntropyFunction")
    loss, entropy = ours.apply(x, w, y, 0.7, -100, 1, True)
    same(loss, functional.nll_loss(log_p, y, reduction="none"), x, w)
    same(entropy, -(log_p.exp() * log_p).sum(1) * valid, x, w)
    teacher, tw = torch.randn(6, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    jsd = names("liger", "liger_kernel.transformers.functional.liger_fused_linear_jsd")
    both = names("liger", "liger_kernel.chunked_loss.functional.liger_fused_linear_jsd")
    log_t = (teacher @ tw.T / 0.7).log_softmax(1)

    def kl(a, m):
        return (a.exp() * (a - m)).sum(1)[valid].mean()

    mixed = (0.3 * log_t.exp() + 0.7 * log_p.exp()).log()
    for beta, value in (
        (0.0, kl(log_t, log_p)),
        (1.0, kl(log_p, log_t)),
        (0.3, 0.3 * kl(log_t, mixed) + 0.7 * kl(log_p, mixed)),
    ):
        same(jsd(x, w, teacher, tw, y, beta, temperature=0.7), value, x, w)
        hard = functional.cross_entropy(x @ w.T, y)
        same(both(x, w, teacher, tw, y, None, None, 0.2, 0.8, beta, -100, 0.7), 0.2 * hard + 0.8 * value, x, w)


def test_torch(run):
    x, w = (torch.randn(shape, requires_grad=True) for shape in ((6, 4), (9, 4)))
    ours = run.adapter("torch").kernels.torch_linear_cross_entropy
    with pytest.raises(ValueError, match="ignore_index: expected None with probabilities"):
        ours(x, w, torch.rand(6, 9), ignore_index=0)
    if not hasattr(functional, "linear_cross_entropy"):  # before torch 2.13
        return
    run.adapter("torch").compare((x, w, torch.randint(9, (6,))), {"linear_bias": torch.randn(9)}, "indices")
    target = torch.rand(6, 9).requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x, w, target, reduction="sum"), target)
    torch.testing.assert_close(gradient, -(x @ w.T).log_softmax(1))


def test_names_are_installed_with_the_packages_above_them(run, monkeypatch):
    for name in ("peer_a", "peer_a.b", "peer_a.b.c"):
        monkeypatch.setitem(sys.modules, name, None)
    run.install({"peer_a.b.c": {"f": 1, "__doc__": "x"}, "peer_a": {"g": 2}})
    import peer_a.b.c
    from peer_a import g

    assert (peer_a.b.c.f, g, peer_a.b.c.__doc__) == (1, 2, None)


def test_results_take_the_place_of_the_same_library(run, tmp_path):
    def tables(library, passed):
        row = {"library": library, "device": "cpu", "passed": passed}
        return {"rows": [row], "failures": [], "left_out": [], "not_run": []}

    file = tmp_path / "kept.json"
    for library, passed in (("a", 1), ("b", 2), ("a", 3)):
        run.keep(tables(library, passed), file)
    assert [(row["library"], row["passed"]) for row in json.loads(file.read_text())["rows"]] == [("b", 2), ("a", 3)]


def test_kept_results_have_a_reason_for_each_failure(run):
    kept = json.loads(run.RESULTS.read_text(encoding="utf-8"))
    assert [row for row in kept["failures"] if not row["reason"] or row["reason"] == run.UNEXPLAINED] == []
    for table in ("left_out", "not_run"):
        assert all(row["reason"] for row in kept[table])
    files = {(row["library"], row["file"]): row for row in kept["rows"] if row["device"] == "cpu"}
    for library in run.LIBRARIES:
        for file in run.adapter(library).FILES:
            row = files[run.NAMES.get(library, library), file]
            assert row["passed"] > 0
            failed = [each for each in kept["failures"] if each["file"] == file and each["device"] == "cpu"]
            assert row["failed"] == len(failed)


def test_torchs_tests_of_optimizers_have_a_reason_for_each_failure():
    from steepest.catalogue import systems

    files = sorted((HERE.parents[2] / "benchmarks" / "results").glob("torch_optim_tests-*.json"))
    kept = json.loads(files[-1].read_text(encoding="utf-8"))
    names = {name for row in systems() if row.kind == "optimizer" for name in row.names}
    assert {row["optimizer"] for row in kept["rows"]} <= names
    for row in kept["rows"]:
        assert len(row["passed"]) > len(row["failed"]), row["optimizer"]
        for test in (*row["failed"], *row["skipped"]):
            assert test["reason"] not in ("", "unexplained"), (row["optimizer"], test["test"])


RANKS = """
import sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from steepest.kernels import cce_linear_cross_entropy as cce

def rank(number, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    torch.manual_seed(0)
    x, w, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 4), (9, 4), (9,)))
    y = torch.tensor([0, 8, -100, 5, 6, 3])
    own = slice(0, 6) if number == 0 else slice(6, 9)
    part = SimpleNamespace(start=own.start, stop=own.stop, group=None)
    leaves = [t.detach().clone().requires_grad_() for t in (x, w[own], b[own])]
    for reduction in ("mean", "none"):
        options = {"return_lse": True, "softcap": 2.0, "reduction": reduction}
        found = cce(leaves[0], leaves[1], y, bias=leaves[2], vocab_parallel_options=part, **options)
        z = 2 * torch.tanh((x @ w.T + b) / 2)
        loss = torch.nn.functional.cross_entropy(z, y, reduction=reduction)
        true = (loss, z.logsumexp(1) * (y >= 0))
        torch.testing.assert_close(found, true)
        weigh = [torch.linspace(0.5, 2, t.numel(), dtype=t.dtype).reshape(t.shape) for t in true]
        ours = torch.autograd.grad(found, leaves, weigh)
        for mine, peer, cut in zip(ours, torch.autograd.grad(true, (x, w, b), weigh), (slice(None), own, own)):
            torch.testing.assert_close(mine, peer[cut])

start_processes(rank, (sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.mark.slow  # processes
def test_cces_log_partition_over_ranks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RANKS, str(tmp_path / "store")], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
