"""The catalogue of losses and metrics: card numbers, identities, gradients, refusals, peers."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
import torchmetrics.functional as tm
import torchmetrics.functional.classification as tmc
import torchmetrics.functional.image as tmi
import torchmetrics.functional.text as tmt
from scipy.linalg import sqrtm
from sklearn import metrics as sk

from steepest.losses.classification import loss_catalogue, metric_catalogue, recommend_loss

SLUG = "losses-and-metrics-survey"
LOSSES, METRICS = loss_catalogue(), metric_catalogue()
L = {name: card.fn for name, card in LOSSES.items()}
M = {name: card.fn for name, card in METRICS.items()}
P = torch.tensor([0.9, 0.2, 0.6, 0.4], dtype=torch.float64)
BITS = torch.tensor([1, 0, 1, 0])
Y = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
F = torch.tensor([1.5, 2.0, 2.0], dtype=torch.float64)


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LISTED = [
    "mse",
    "mae",
    "huber",
    "log_cosh",
    "quantile",
    "poisson",
    "mape",
    "smape",
    "rmse",
    "bce",
    "weighted_bce",
    "cross_entropy",
    "sparse_cross_entropy",
    "smoothed_cross_entropy",
    "nll",
    "hinge",
    "squared_hinge",
    "focal",
    "poly",
    "kl",
    "cosine_embedding",
    "smooth_l1",
    "iou",
    "giou",
    "diou",
    "ciou",
    "pixel_cross_entropy",
    "dice",
    "jaccard",
    "tversky",
    "focal_tversky",
    "lovasz",
    "boundary",
    "triplet",
    "contrastive",
    "center",
    "sphereface",
    "cosface",
    "arcface",
    "scale_invariant_log",
    "adversarial",
    "wasserstein",
    "reconstruction",
    "perceptual",
    "vae_elbo",
    "token_cross_entropy",
    "ctc",
    "minimum_risk",
    "pairwise_ranking",
    "listwise_ranking",
]
LISTED_METRICS = [
    "r2",
    "adjusted_r2",
    "accuracy",
    "precision",
    "recall",
    "specificity",
    "f_beta",
    "balanced_accuracy",
    "kappa",
    "mcc",
    "roc_auc",
    "pr_auc",
    "top_k",
    "log_loss",
    "confusion_matrix",
    "box_iou",
    "average_precision",
    "mean_average_precision",
    "pixel_accuracy",
    "mean_iou",
    "dice_score",
    "boundary_f1",
    "verification_rate",
    "equal_error_rate",
    "psnr",
    "ssim",
    "inception_score",
    "perplexity",
    "bleu",
    "rouge",
    "word_error_rate",
    "mrr",
    "ndcg",
]


def test_what_the_survey_lists_is_there():
    assert set(LISTED) <= set(LOSSES)
    assert set(LISTED_METRICS) <= set(METRICS)
    for card in [*LOSSES.values(), *METRICS.values()]:
        assert card.fn.__doc__
        assert card.formula
        assert card.range
        assert card.task
    assert LOSSES["focal"].defaults == {"alpha": 0.25, "gamma": 2.0}


@pytest.mark.holds("losses-and-metrics-survey", 1)
@pytest.mark.parametrize(
    ("name", "params", "wanted"),
    [("dice", {}, 0.2683), ("jaccard", {}, 0.4231), ("tversky", {"alpha": 0.3, "beta": 0.7}, 0.2611)],
)
def test_overlaps_of_the_card(name, params, wanted):
    found = L[name](P, BITS, **params).item()
    assert found == pytest.approx(wanted, abs=5e-5)
    tp = fp = fn = 0.0
    for p, y in zip(P.tolist(), BITS.tolist()):
        tp, fp, fn = tp + p * y, fp + p * (1 - y), fn + (1 - p) * y
    by_hand = {"dice": 2 * tp / (2 * tp + fp + fn), "jaccard": tp / (tp + fp + fn)}
    assert found == pytest.approx(1 - by_hand.get(name, tp / (tp + 0.3 * fp + 0.7 * fn)), rel=1e-12)


@pytest.mark.holds("losses-and-metrics-survey", 1)
def test_binary_losses_of_the_card():
    assert L["bce"](P.logit(), BITS).item() == pytest.approx(0.3375, abs=5e-5)
    assert L["bce"](P.logit(), BITS).item() == pytest.approx(sk.log_loss(BITS, P), rel=1e-9)
    found = L["focal"](P.logit(), BITS).item()
    assert found == pytest.approx(0.0222, abs=5e-5)
    own = [(p, 0.25) if y else (1 - p, 0.75) for p, y in zip(P.tolist(), BITS.tolist())]
    assert found == pytest.approx(sum(-a * (1 - p) ** 2 * math.log(p) for p, a in own) / 4, rel=1e-12)


@pytest.mark.holds("losses-and-metrics-survey", 2)
def test_regression_losses_of_the_card():
    wanted = {"mae": 0.8333, "mse": 1.4167, "huber": 0.5417, "log_cosh": 0.4817}
    for name, value in wanted.items():
        assert L[name](F, Y).item() == pytest.approx(value, abs=5e-5)
    assert L["quantile"](F, Y, q=0.9).item() == pytest.approx(0.6167, abs=5e-5)
    assert L["log_cosh"](F, Y).item() == pytest.approx(float(np.log(np.cosh((Y - F).numpy())).mean()), rel=1e-12)
    assert L["quantile"](F, Y, q=0.9).item() == pytest.approx(sk.mean_pinball_loss(Y, F, alpha=0.9), rel=1e-12)


@pytest.mark.holds("losses-and-metrics-survey", 3)
@pytest.mark.parametrize("seed", range(3))
def test_identities(seed):
    hard, truth = (torch.randint(2, (40,), generator=g(seed + k)) for k in (0, 9))
    j = 1 - L["jaccard"](hard.double(), truth).item()
    assert 1 - L["dice"](hard.double(), truth).item() == pytest.approx(2 * j / (1 + j), rel=1e-12)
    assert M["dice_score"](hard, truth) == pytest.approx(2 * j / (1 + j), rel=1e-12)
    p, y = LOSSES["dice"].example(g(seed))
    assert torch.allclose(L["tversky"](p, y, alpha=0.5, beta=0.5), L["dice"](p, y))
    logits, bits = LOSSES["bce"].example(g(seed))
    assert torch.allclose(L["focal"](logits, bits, alpha=None, gamma=0.0), L["bce"](logits, bits))
    # with a = 1 the usual a_t leaves the positives, and of them it is cross-entropy too
    positives = L["bce"](logits[bits == 1], bits[bits == 1]) * bits.double().mean()
    assert torch.allclose(L["focal"](logits, bits, alpha=1.0, gamma=0.0), positives)
    logits, index = LOSSES["poly"].example(g(seed))
    assert torch.allclose(L["poly"](logits, index, epsilon=0.0), L["sparse_cross_entropy"](logits, index))


@pytest.mark.holds("losses-and-metrics-survey", 4)
@pytest.mark.parametrize("name", [n for n, card in LOSSES.items() if card.gradient == "exact"])
def test_gradients(name):
    args = list(LOSSES[name].example(g(1)))
    names = list(inspect.signature(L[name]).parameters)
    floating = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.is_floating_point()]
    places = [i for i in floating if names[i] != "target"]
    if name == "perceptual":
        layers, wanted = args
        leaves = [t.clone().requires_grad_() for t in layers]
        assert torch.autograd.gradcheck(lambda *t: L[name](t, wanted), leaves)
        return

    def run(*values):
        given = list(args)
        for place, value in zip(places, values):
            given[place] = value
        return L[name](*given)

    found = run(*(args[i] for i in places))
    assert found.shape == ()
    assert math.isfinite(found)
    assert torch.autograd.gradcheck(run, [args[i].clone().requires_grad_() for i in places])


@pytest.mark.holds("losses-and-metrics-survey", 4)
def test_surrogate_gradients():
    assert sorted(n for n, card in LOSSES.items() if card.gradient != "exact") == ["ciou", "ctc"]
    a, b = LOSSES["ciou"].example(g(2))
    a.requires_grad_()
    (found,) = torch.autograd.grad(L["ciou"](a, b), a)
    sides = [x[:, 2:] - x[:, :2] for x in (a, b)]
    v = 4 / math.pi**2 * ((sides[0][:, 0] / sides[0][:, 1]).atan() - (sides[1][:, 0] / sides[1][:, 1]).atan()) ** 2
    overlap = M["box_iou"](a, b).diagonal()
    held = (v / (1 - overlap + v)).detach()
    (wanted,) = torch.autograd.grad(L["diou"](a, b) + (held * v).mean(), a)
    torch.testing.assert_close(found, wanted)
    # CTC: torch's gradient is right in the logits beneath
    log_p, *rest = LOSSES["ctc"].example(g(3))
    assert torch.autograd.gradcheck(lambda z: L["ctc"](z.log_softmax(-1), *rest), log_p.clone().requires_grad_())


@pytest.mark.holds("losses-and-metrics-survey", 4)
@pytest.mark.parametrize("name", list(METRICS))
def test_metrics_refuse_mismatched_shapes(name):
    first, *rest = METRICS[name].example(g(1))
    M[name](first, *rest)
    wrong = {"box_iou": lambda a: a[:, :3], "frechet_distance": lambda a: a[:, :-1], "inception_score": lambda a: a[0]}
    with pytest.raises(ValueError, match="expected"):
        M[name](wrong.get(name, lambda a: a[:-1])(first), *rest)


def same(found, wanted, tolerance=1e-6):
    rounding = 8 * torch.finfo(torch.float32).eps  # of the peer's float32, beside terms of size 1
    assert float(found) == pytest.approx(float(wanted), rel=tolerance, abs=rounding)


@pytest.mark.holds("losses-and-metrics-survey", 5)
def test_classification_metrics_agree_with_torchmetrics():
    bits, truth = (torch.randint(2, (60,), generator=g(k)) for k in (1, 2))
    pairs = {
        "accuracy": tmc.binary_accuracy, "precision": tmc.binary_precision, "recall": tmc.binary_recall,
        "specificity": tmc.binary_specificity, "kappa": tmc.binary_cohen_kappa, "mcc": tmc.binary_matthews_corrcoef,
    }  # fmt: skip
    for name, peer in pairs.items():
        same(M[name](bits, truth), peer(bits, truth))
    same(M["f_beta"](bits, truth, beta=2.0), tmc.binary_fbeta_score(bits, truth, beta=2.0))
    same(M["balanced_accuracy"](bits, truth), tmc.multiclass_accuracy(bits, truth, 2, average="macro"))
    assert torch.equal(M["confusion_matrix"](bits, truth), tmc.binary_confusion_matrix(bits, truth))
    scores = torch.rand(60, generator=g(3), dtype=torch.float64)
    same(M["roc_auc"](scores, truth), tmc.binary_auroc(scores, truth))
    same(M["pr_auc"](scores, truth), tmc.binary_average_precision(scores, truth))
    logits, index = METRICS["top_k"].example(g(4))
    same(M["top_k"](logits, index, k=2), tmc.multiclass_accuracy(logits, index, 4, top_k=2, average="micro"))
    same(M["log_loss"](logits.softmax(-1), index), nnf.cross_entropy(logits, index))
    maps = METRICS["mean_iou"].example(g(5))
    same(M["mean_iou"](*maps), tmc.multiclass_jaccard_index(*maps, num_classes=2))
    same(M["dice_score"](*maps), tmc.binary_f1_score(maps[0].flatten(), maps[1].flatten()))
    same(M["pixel_accuracy"](*maps), tmc.binary_accuracy(*maps))


@pytest.mark.holds("losses-and-metrics-survey", 5)
def test_regression_agrees_with_torchmetrics():
    f, y = LOSSES["mape"].example(g(1))
    same(L["mse"](f, y), tm.mean_squared_error(f, y))
    same(L["rmse"](f, y), tm.mean_squared_error(f, y, squared=False))
    same(L["mae"](f, y), tm.mean_absolute_error(f, y))
    same(L["mape"](f, y) / 100, tm.mean_absolute_percentage_error(f, y))
    same(L["smape"](f, y) / 100, tm.symmetric_mean_absolute_percentage_error(f, y))
    same(L["log_cosh"](f, y), tm.log_cosh_error(f, y))
    same(L["poisson"](f, y), tm.tweedie_deviance_score(f, y, power=1) / 2 + (y - y * y.log()).mean())
    same(M["r2"](f, y), tm.r2_score(f, y))
    same(M["adjusted_r2"](f, y, features=2), tm.r2_score(f, y, adjusted=2))
    p, q = (torch.randn(4, 3, generator=g(k), dtype=torch.float64).softmax(-1) for k in (5, 6))
    same(L["kl"](q.log(), p), tm.kl_divergence(p, q))
    scores, bits = LOSSES["hinge"].example(g(7))
    same(L["hinge"](scores, bits), sk.hinge_loss(bits, scores))


@pytest.mark.holds("losses-and-metrics-survey", 5)
def test_images_text_and_rankings_agree_with_torchmetrics():
    a, b = METRICS["psnr"].example(g(1))
    same(M["psnr"](a, b), tmi.peak_signal_noise_ratio(a, b, data_range=1.0))
    x, y = (torch.nn.functional.interpolate(v, size=32) for v in (a, b))
    # the peer pads by reflection and crops; only the windows that fit are common to both
    _, full = tmi.structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
    inner = full[..., 5:-5, 5:-5] if full.shape[-1] == 32 else full
    same(M["ssim"](x, y), inner.mean(), 1e-5)
    logits, tokens = METRICS["perplexity"].example(g(2))
    same(M["perplexity"](logits, tokens), tmt.perplexity(logits, tokens))
    found, wanted = METRICS["bleu"].example(g(3))
    same(M["bleu"](found, wanted, n=2), tmt.bleu_score(found, [[w] for w in wanted], n_gram=2), 1e-5)
    same(M["word_error_rate"](found, wanted), tmt.word_error_rate(found, wanted))
    scores, relevant = METRICS["mrr"].example(g(4))
    scores = scores.sigmoid()  # the peer takes scores <= 0 for not retrieved
    from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_reciprocal_rank

    same(M["mrr"](scores, relevant), np.mean([retrieval_reciprocal_rank(s, r) for s, r in zip(scores, relevant)]))
    gains = torch.randint(4, scores.shape, generator=g(5))
    same(M["ndcg"](scores, gains), np.mean([retrieval_normalized_dcg(s, r) for s, r in zip(scores, gains)]))


def test_rouge_and_word_errors_by_hand():
    found, wanted = ["the cat sat"], ["the cat sat down today"]
    assert M["rouge"](found, wanted) == pytest.approx(2 * 3 / 8)
    assert M["rouge"](found, wanted, kind=2) == pytest.approx(2 * 2 / 6)
    assert M["rouge"](["sat The cat"], ["the cat sat"]) == pytest.approx(2 / 3)
    assert M["word_error_rate"](["a x c d"], ["a b c"]) == pytest.approx(2 / 3)
    assert M["bleu"](["a b c d"], ["a b c d"]) == 1
    assert M["bleu"](["a b"], ["c d"]) == 0


def test_frechet_and_inception():
    a, b = METRICS["frechet_distance"].example(g(1))
    first, second = np.cov(a.numpy().T), np.cov(b.numpy().T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert M["frechet_distance"](a, b) == pytest.approx(wanted, rel=1e-6)
    assert M["frechet_distance"](a, a) == pytest.approx(0, abs=1e-9)
    assert M["inception_score"](torch.eye(5)) == pytest.approx(5)
    assert M["inception_score"](torch.full((4, 5), 0.2)) == pytest.approx(1)


def test_boxes_by_hand():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0]], dtype=torch.float64)
    assert L["iou"](a, b).item() == pytest.approx(1 - 1 / 7)
    assert L["giou"](a, b).item() == pytest.approx(1 - 1 / 7 + 2 / 9)
    assert L["diou"](a, b).item() == pytest.approx(1 - 1 / 7 + 2 / 18)
    assert L["ciou"](a, b).item() == pytest.approx(1 - 1 / 7 + 2 / 18)  # equal shapes
    assert L["ciou"](a, a).item() == 0
    wide = torch.tensor([[0.0, 0.0, 4.0, 2.0]], dtype=torch.float64)
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    wanted = 0.5 + 1 / 20 + v**2 / (0.5 + v)
    assert L["ciou"](a, wide).item() == pytest.approx(wanted)


def test_average_precision_by_hand():
    truth = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]])
    far = torch.tensor([[5.0, 5.0, 6.0, 6.0]])
    # by score: hit, miss, second hit -> precision 1, 1/2, 2/3
    boxes = torch.cat([truth[:1], far, truth[1:]])
    assert M["average_precision"]([(boxes, torch.tensor([0.9, 0.8, 0.7]))], [truth]) == pytest.approx((1 + 2 / 3) / 2)
    # a second detection of a box that is taken is a miss
    twice = torch.cat([truth[:1], truth[:1]])
    assert M["average_precision"]([(twice, torch.tensor([0.9, 0.8]))], [truth]) == pytest.approx(0.5)
    both = M["mean_average_precision"]([[(truth, torch.ones(2))], [(far, torch.ones(1))]], [[truth], [truth]])
    assert both == pytest.approx(0.5)


def test_ranks_and_rates_by_hand():
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8])
    genuine = torch.tensor([0, 0, 1, 1])
    assert M["verification_rate"](scores, genuine, far=0.0) == 0.5
    assert M["verification_rate"](scores, genuine, far=0.5) == 1.0
    assert M["equal_error_rate"](scores, genuine) == pytest.approx(0.5)
    assert M["equal_error_rate"](torch.tensor([0.1, 0.2, 0.8, 0.9]), genuine) == 0
    assert M["mrr"](torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), torch.tensor([[0, 1, 0], [0, 0, 0]])) == 0.25


def test_boundaries():
    mask = torch.zeros(1, 7, 7, dtype=torch.long)
    mask[0, 2:5, 2:5] = 1
    assert M["boundary_f1"](mask, mask, tolerance=0.0) == 1
    moved = mask.roll(1, 2)
    assert 0 < M["boundary_f1"](mask, moved, tolerance=0.0) < M["boundary_f1"](mask, moved, tolerance=1.0) == 1
    inside = L["boundary"](mask.double(), mask).item()
    assert inside == pytest.approx(-1 / 49)  # its border is at 0, its centre at -1
    assert L["boundary"](torch.ones(1, 7, 7), mask) > 0


def test_other_losses_by_hand():
    logits, bits = LOSSES["lovasz"].example(g(1))
    sure = 50.0 * (2 * bits - 1).double()
    assert L["lovasz"](sure, bits).item() == 0
    # at errors in {0, 1} the extension is the Jaccard loss of the set of errors
    wrong = sure.clone()
    wrong[0, 0, :2] = 0.0
    missed = int(bits[0, 0, :2].sum())
    truth = int(bits.sum())
    assert L["lovasz"](wrong, bits).item() == pytest.approx(1 - (truth - missed) / (truth + 2 - missed))
    f, y = LOSSES["scale_invariant_log"].example(g(2))
    assert L["scale_invariant_log"](3 * y, y, lam=1.0).item() == pytest.approx(0, abs=1e-12)
    assert L["scale_invariant_log"](f, y).item() == pytest.approx(
        ((f / y).log() ** 2).mean().item() - 0.5 * (f / y).log().mean().item() ** 2
    )
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    assert L["vae_elbo"](zero, one, one, zero).item() == pytest.approx(1 + 1)
    cosine = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    first = torch.tensor([0])
    plain = {"scale": 1.0}
    assert L["arcface"](cosine, first, margin=0.5, **plain).item() == pytest.approx(
        math.log1p(math.exp(-math.cos(math.pi / 3 + 0.5)))
    )
    assert L["cosface"](cosine, first, margin=0.35, **plain).item() == pytest.approx(math.log1p(math.exp(-0.15)))
    # theta = pi/3 lies in the second quarter for m = 4: psi = -cos(4 pi/3) - 2
    assert L["sphereface"](cosine, first, **plain).item() == pytest.approx(math.log1p(math.exp(2 - 0.5)))
    for name in ("arcface", "sphereface"):  # where the angle has no slope
        ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
        L[name](ends, torch.tensor([0, 0])).backward()
        assert torch.isfinite(ends.grad).all()
    assert L["minimum_risk"](zero, torch.tensor([[1.0, 3.0]])).item() == pytest.approx(2)
    assert L["pairwise_ranking"](zero, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(math.log(2))
    assert L["contrastive"](zero, one, torch.tensor([1])).item() == pytest.approx(1)
    assert L["contrastive"](zero, zero, torch.tensor([0])).item() == pytest.approx(0.5)
    logits, _ = LOSSES["probability_mae"].example(g(3))
    total = sum(L["probability_mae"](logits, torch.full((5,), k)) for k in range(3))
    assert total.item() == pytest.approx(2 * 3 - 2)  # symmetric


def test_empty_masks_are_no_error():
    nothing = torch.zeros(2, 3, 3)
    for name in ("dice", "jaccard", "tversky"):
        assert L[name](nothing, nothing.long()) == 0
    assert M["dice_score"](nothing.long(), nothing.long()) == 1


def test_recommendations():
    def names(*args, **kwargs):
        return [r.name for r in recommend_loss(*args, **kwargs)]

    assert names("regression")[0] == "mse"
    assert set(names("regression", outliers=0.05)[:2]) == {"mae", "huber"}
    assert set(names("binary", imbalance=50)[:2]) == {"weighted_bce", "focal"}
    assert names("binary")[0] == "bce"
    assert set(names("multiclass", outliers=0.3)[:2]) == {"generalized_cross_entropy", "probability_mae"}
    assert names("multiclass")[0] == "sparse_cross_entropy"
    assert LOSSES[names("segmentation", imbalance=20)[0]].imbalance
    for task in {card.task for card in LOSSES.values()}:
        for kwargs in ({}, {"imbalance": 10.0}, {"outliers": 0.3}):
            found = recommend_loss(task, **kwargs)
            assert found
            assert all(LOSSES[r.name].task == task and r.reason for r in found)
    with pytest.raises(ValueError, match="task"):
        recommend_loss("forecast")
    with pytest.raises(ValueError, match="imbalance"):
        recommend_loss("binary", imbalance=0.5)


def test_losses_refuse_wrong_shapes():
    for name in ("mse", "bce", "dice", "kl", "smooth_l1", "triplet", "listwise_ranking", "vae_elbo"):
        first, second, *rest = LOSSES[name].example(g(1))
        with pytest.raises(ValueError, match="expected"):
            L[name](first, second[:-1], *rest)


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
INDEX = torch.tensor([0, 1])
MASKS = torch.tensor([[[1, 0], [0, 1]]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: L["dice"](MASKS * 3.0, MASKS), r"outputs: expected probabilities in \[0, 1\], got 3"),
        (lambda: L["jaccard"](MASKS - 2.0, MASKS), r"outputs: expected probabilities in \[0, 1\], got -1"),
        (lambda: L["tversky"](MASKS * 3.0, MASKS), r"outputs: expected probabilities in \[0, 1\]"),
        (lambda: L["focal_tversky"](MASKS * 3.0, MASKS), r"outputs: expected probabilities in \[0, 1\]"),
        (lambda: L["boundary"](MASKS * 3.0, MASKS), r"outputs: expected probabilities in \[0, 1\]"),
        (lambda: M["log_loss"](LOGITS, INDEX), r"outputs: expected probabilities in \[0, 1\]"),
        (lambda: M["log_loss"](LOGITS.sigmoid(), INDEX), "outputs: expected rows of probabilities that sum to 1"),
        (lambda: M["inception_score"](LOGITS), r"outputs: expected probabilities in \[0, 1\]"),
        (lambda: M["inception_score"](LOGITS.sigmoid()), "outputs: expected rows of probabilities that sum to 1"),
        (lambda: L["nll"](LOGITS, INDEX), "outputs: expected log-probabilities <= 0, got 2"),
        (lambda: L["kl"](LOGITS, LOGITS.softmax(-1)), "outputs: expected log-probabilities <= 0"),
        (lambda: L["kl"](LOGITS.log_softmax(-1), LOGITS), r"target: expected probabilities in \[0, 1\]"),
        (lambda: L["cross_entropy"](LOGITS, LOGITS), r"target: expected probabilities in \[0, 1\]"),
        (lambda: L["ctc"](LOGITS[:, None], INDEX[None, 1:], [2], [1]), "outputs: expected log-probabilities <= 0"),
        (lambda: L["arcface"](LOGITS, INDEX), r"outputs: expected cosines in \[-1, 1\], got 2"),
        (lambda: L["cosface"](LOGITS, INDEX), r"outputs: expected cosines in \[-1, 1\]"),
        (lambda: L["sphereface"](LOGITS, INDEX), r"outputs: expected cosines in \[-1, 1\]"),
        (lambda: L["cosine_embedding"](LOGITS, LOGITS, torch.tensor([0, 1])), r"same: expected labels in \{-1, 1\}"),
        (lambda: L["poisson"](P, -P), "target: expected counts >= 0"),
        (lambda: L["giou"](torch.eye(4), torch.ones(4, 4)), "outputs: expected boxes x1, y1, x2, y2 with sides >= 0"),
        (lambda: M["box_iou"](torch.ones(4, 4), -torch.eye(4)), "target: expected boxes x1, y1, x2, y2 with sides"),
    ],
)
def test_values_outside_the_domain_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "focal_tversky", "boundary"])
def test_an_overlap_with_nan_is_nan(name):
    p = torch.full((1, 2, 2), torch.nan)
    assert L[name](p, MASKS).isnan()
    assert L[name](p, 0 * MASKS).isnan()


def test_ranks_of_nan_are_nan():
    scores = torch.tensor([[3.0, 2.0, torch.nan]])
    assert math.isnan(M["mrr"](scores, torch.tensor([[0, 0, 1]])))
    assert math.isnan(M["top_k"](scores, torch.tensor([2]), k=1))
    assert math.isnan(M["top_k"](scores, torch.tensor([0]), k=3))


@pytest.mark.parametrize("label", [0, 1])
def test_rates_of_one_kind_of_pairs_are_nan(label):
    scores, genuine = torch.tensor([0.1, 0.4, 0.8]), torch.full((3,), label)
    assert math.isnan(M["equal_error_rate"](scores, genuine))
    assert math.isnan(M["verification_rate"](scores, genuine))


@pytest.mark.filterwarnings("error")
def test_nothing_of_no_variance_is_explained():
    y = torch.full((1001,), 0.1, dtype=torch.float64)
    assert M["r2"](y + 1, y) == -math.inf
    assert math.isnan(M["r2"](y, y))


def test_a_target_that_nothing_aligns_with():
    log_p = LOGITS.log_softmax(-1)[:, None].requires_grad_()
    rest = (torch.tensor([[1, 1]]), torch.tensor([2]), torch.tensor([2]))
    assert L["ctc"](log_p, *rest) == math.inf
    loss = L["ctc"](log_p, *rest, zero_infinity=True)
    assert loss == 0
    assert torch.autograd.grad(loss, log_p)[0].abs().max() == 0
