"""Whole comparisons of texts: prompts and answers, a plain text, a given model, the saved winner, the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import steepest
from steepest.catalogue import systems
from steepest.cli import app
from steepest.comparison import InputError, TextWinner, Winner
from steepest.comparison.api import prepare
from steepest.comparison.asked import check_asked
from steepest.comparison.design.context import TextSplit
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.text_models import TextModel, find_text_model
from steepest.comparison.design.text_objectives import cost_embedding, known_text_objectives, neighbours, token_loss_of
from steepest.comparison.joining import join
from steepest.comparison.metrics.texts import TextOutcome, text_metrics
from steepest.comparison.read.texts.vocabulary import Characters, encoded, prompts_of
from steepest.comparison.report import report_html
from steepest.comparison.request import Request
from steepest.comparison.work.cells import member_of, recipe_of, run_job
from steepest.comparison.work.run import Run
from steepest.comparison.work.store import Store
from steepest.comparison.work.text_training import TokenStep, completions, scored
from steepest.comparison.work.timing import time_job
from steepest.comparison.work.training import train
from steepest.core.objective import Batch
from steepest.core.token_loss import TokenLoss
from steepest.nn.language_model import LanguageModel

SMALL = {"task": "text", "epochs": 1, "trials": 1, "folds": 2, "workers": 1, "quiet": True, "budget": 60}
EVIL = "<script>alert(1)</script>"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Sums whose prompts would end a page, were they not escaped."""
    rows = [{"prompt": f"{EVIL}{i}+1=", "answer": str(i + 1)} for i in range(40)]
    return write(tmp_path_factory.mktemp("text") / "sums.jsonl", rows)


@pytest.fixture(scope="module")
def done(answers, tmp_path_factory):
    return steepest.compare(
        answers, out=tmp_path_factory.mktemp("runs"), objectives="direct_coverage,number_token_loss", **SMALL
    )


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    drawn = np.random.default_rng(0).choice(["lazy", "dogs", "jump", "over", "foxes"], 800)
    path.write_text(" ".join(drawn), encoding="utf-8")
    return str(path)


def test_answers_are_compared_against_cross_entropy(done):
    results = done.results
    assert [row["name"] for row in results["rows"][1:]] == [
        "token_cross_entropy",
        "direct_coverage",
        "number_token_loss",
    ]
    assert results["metric"]["name"] == "exact_match"
    assert results["data"]["task"] == "text"
    assert set(results["rows"][1]["metrics"]) == {"exact_match", "cross_entropy", "perplexity", "token_accuracy"}
    assert "grouped folds" in results["protocol"]["outer design"]
    for row in results["rows"][1:]:
        nats, perplexity = row["metrics"]["cross_entropy"]["mean"], row["metrics"]["perplexity"]["mean"]
        assert np.exp(nats) == pytest.approx(perplexity, rel=0.02)  # means over folds of another scale


def test_the_page_escapes_what_models_and_rows_say(done):
    page = done.report.read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page
    assert 'id="samples"' in page
    samples = done.results["samples"]
    assert samples["chosen"] in ("token_cross_entropy", "direct_coverage", "number_token_loss")
    assert [len(row) for row in samples["rows"]] == [4, 4, 4]
    assert all(row[0].startswith(EVIL) for row in samples["rows"])
    assert "perplexity" in page


def test_the_same_call_computes_nothing(done, answers, capsys):
    again = steepest.compare(
        answers, out=done.folder.parent, objectives="direct_coverage,number_token_loss", **{**SMALL, "quiet": False}
    )
    assert "nothing is computed" in capsys.readouterr().out
    assert again.results["fold_scores"] == done.results["fold_scores"]


def test_others_can_join_a_run_of_texts(done):
    store = Store(done.folder)
    context = join(done.folder.name, store)
    store.close()
    assert context.settings.objectives == ("token_cross_entropy", "direct_coverage", "number_token_loss")
    assert context.table.answers


def test_steps_are_timed_on_fewer_rows(answers):
    context, _ = prepare(Request(answers, task="text", epochs=2, trials=1, folds=2))
    assert time_job(context, Job("objective", "glow", ((0, 0),)), steps=1) > 0


def test_cells_are_the_same_bits_again(answers):
    context, _ = prepare(Request(answers, task="text", epochs=1, trials=1, folds=2, objectives="glow"))
    job = Job("objective", "glow", ((0, 1),))
    first, second = (run_job(context, job)[0] for _ in range(2))
    assert np.array_equal(first.outcome.predicted, second.outcome.predicted)
    assert first.values["samples"] == second.values["samples"]


def test_objectives_share_their_start_and_order(answers):
    context, _ = prepare(Request(answers, task="text", epochs=1, trials=1, folds=2, objectives="emo"))
    members = [member_of(context, (0, 0), 0, context.trials(name)[0]) for name in ("token_cross_entropy", "emo")]
    assert members[0].seeds == members[1].seeds
    assert members[0].trial.lr == members[1].trial.lr


def test_the_winner_goes_on_from_prompts(done, answers):
    winner = done.winner
    assert isinstance(winner, TextWinner)
    frame = winner.predict(["1+1=", "", "ä" * 900])
    assert frame.columns.tolist() == ["prompt", "completion"]
    whole = winner.predict_file(answers)
    assert len(whole) == 40
    first = pd.DataFrame({"prompt": whole["prompt"].tolist()[:3], "x": 0}, index=[7, 8, 9])
    assert done.predict(first)["completion"].tolist() == whole["completion"].tolist()[:3]
    assert done.predict(first).index.tolist() == [7, 8, 9]
    with pytest.raises(InputError, match="language model"):
        Winner.load(done.folder)
    with pytest.raises(InputError, match="no column 'prompt'"):
        done.predict(pd.DataFrame({"y": ["1"]}))


def test_the_command_predicts(done, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1+1=\n2+1=\n")
    ran = CliRunner().invoke(app, ["predict", str(done.folder), str(prompts)])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.splitlines()[0] == "prompt,completion"
    assert len(ran.stdout.splitlines()) == 3


@pytest.mark.parametrize("change", ["cut", "nan", "fact", "other"])
def test_a_damaged_winner_is_refused(done, tmp_path, change):
    folder = tmp_path / "winner"
    folder.mkdir()
    for file in (done.folder / "winner").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    facts = json.loads((folder / "winner.json").read_text())
    if change == "cut":
        data = (folder / "winner.safetensors").read_bytes()
        (folder / "winner.safetensors").write_bytes(data[:-8])
    elif change == "nan":
        facts["most"] = facts["most"] + 1  # places that no tensor has
    elif change == "fact":
        facts["answer"] = "many"
    else:
        facts["vocabulary"] = {"characters": ["a"]}
    (folder / "winner.json").write_text(json.dumps(facts))
    with pytest.raises(InputError):
        TextWinner.load(folder)


def test_a_plain_text_has_cross_entropy_and_leaves_out_what_needs_numbers(words, tmp_path):
    context, notes = prepare(Request(words, task="text", epochs=2, trials=1, folds=2))
    assert context.metric.name == "cross_entropy"
    assert context.settings.objectives == ("token_cross_entropy", "direct_coverage", "glow", "emo")
    assert any(note.startswith("left out number_token_loss: values: expected two number tokens") for note in notes)
    with pytest.raises(InputError, match="'number_token_loss' cannot be used on this text"):
        prepare(Request(words, task="text", objectives="number_token_loss", folds=2))
    cell = run_job(context, Job("objective", "emo", ((0, 0),)))[0]
    assert 0 < cell.values["metrics"]["cross_entropy"] < np.log(len(set(context.table.rows[0][1])) + 30)
    assert len(cell.values["curve"]) == 2


def test_scores_are_those_of_whole_logits():
    torch.manual_seed(0)
    words = Characters("0123456789+=")
    model = LanguageModel(len(words.words), 12).eval()
    tokens, labels = encoded(words, [(f"{i}+7=", str(i + 7)) for i in range(70)], answers=True, most=12)
    outcome = scored(model, torch.as_tensor(np.stack([tokens, labels], 1)))
    for row in (0, 3, 69):
        log_p = model(torch.as_tensor(tokens[row : row + 1]))[0].detach().double().log_softmax(-1)
        valid = [(t, label) for t, label in enumerate(labels[row]) if label >= 0]
        expected = sum(float(log_p[t, label]) for t, label in valid)
        right = sum(int(log_p[t].argmax()) == label for t, label in valid)
        assert outcome.predicted[row, 0] == pytest.approx(expected, rel=1e-5)
        assert outcome.predicted[row, 1] == right


def test_scores_and_losses_know_the_cap_of_logits():
    """Those of a model whose logits end at a cap, by whole logits in float64."""
    torch.manual_seed(0)
    model = LanguageModel(7, 5).eval()
    tokens, labels = torch.randint(7, (3, 5)), torch.randint(7, (3, 5))
    model.softcap = 0.5
    capped = 0.5 * torch.tanh(model(tokens).detach().double() / 0.5)
    expected = capped.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    outcome = scored(model, torch.stack([tokens, labels], 1))
    assert outcome.predicted[:, 0] == pytest.approx(expected.sum(-1).numpy(), rel=1e-5)
    loss = TokenStep().loss(model, Batch(tokens, labels), known_text_objectives()["token_cross_entropy"]())
    assert loss.item() == pytest.approx(-expected.mean().item(), rel=1e-5)


def test_folds_start_from_other_weights(answers):
    context, _ = prepare(Request(answers, task="text", epochs=1, trials=1, folds=2))
    model, words = find_text_model("gpt"), context.split((0, 0), 0).texts
    seeds = [member_of(context, (0, fold), 0, context.trials("emo")[0]).seeds["backbone"] for fold in (0, 1)]
    first, second, again = (model.build(words.vocabulary, words.most, seed) for seed in (*seeds, seeds[0]))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, second.head.weight)


def test_a_training_starts_from_the_seed_of_its_fold(answers, monkeypatch):
    context, _ = prepare(Request(answers, task="text", epochs=1, trials=1, folds=2))
    asked, build = [], TextModel.build

    def noted(self, vocabulary, most, seed):
        asked.append(seed)
        return build(self, vocabulary, most, seed)

    monkeypatch.setattr(TextModel, "build", noted)
    members = [member_of(context, (0, fold), 0, context.trials("emo")[0]) for fold in (0, 1)]
    train(recipe_of(context, context.objective("emo")), members)
    assert asked == [member.seeds["backbone"] for member in members]


def test_what_models_say_is_escaped_too(done):
    rows = [["<b>1", "<b>2", "<b>3", "<b>4"]]
    page = report_html({**done.results, "samples": {"chosen": "direct_coverage", "rows": rows}})
    for number in range(1, 5):
        assert f"<samp>&lt;b&gt;{number}</samp>" in page


def test_the_same_text_in_other_rows_is_another_run(tmp_path):
    """Files of equal bytes, read by other keys."""
    rows = [{"a": f"{i}", "b": f"{i + 1}", "c": f"{i + 1}"} for i in range(20)]
    path = write(tmp_path / "rows.jsonl", rows)
    runs = [
        Run(prepare(Request(path, task="text", prompt=prompt, answer=answer, folds=2))[0], tmp_path).folder.name
        for prompt, answer in (("a", "b"), ("a", "b"), ("b", "a"))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_exact_match_counts_the_answers_that_the_model_gives_by_itself():
    """Counted on tokens after the right ones before them; the same as going on alone and comparing texts."""
    rows = [(f"{i % 4}=", str(i % 4)) for i in range(8)]
    words = Characters("0123=")
    torch.manual_seed(0)
    model = LanguageModel(len(words.words), 6)
    tokens, labels = (torch.as_tensor(a) for a in encoded(words, rows, answers=True, most=6))
    loss, optimizer = known_text_objectives()["token_cross_entropy"](), torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(6):  # some are right, some not yet
        optimizer.zero_grad()
        loss(model.hidden(tokens[:5]), labels[:5], model.head.weight).backward()
        optimizer.step()
    model.eval()
    outcome = scored(model, torch.stack([tokens, labels], 1))
    given = completions(model, TextSplit(words, 6, 2, True, ()), [prompt for prompt, _ in rows])
    y = (labels >= 0).sum(1).numpy().astype(float)
    by_text = np.mean([text == answer for text, (_, answer) in zip(given, rows)])
    assert text_metrics(answers=True)["exact_match"](y, outcome) == by_text
    assert 0 < by_text < 1


OWN = '''
from steepest.losses.language import TokenCrossEntropyLoss

def shorter(wanted, given):
    assert all(isinstance(text, str) for text in [*wanted, *given])
    assert len(wanted) == len(given)
    return sum(len(text) for text in given) / len(given)

shorter.greater_is_better = False

class Sharp(TokenCrossEntropyLoss):
    """Cross-entropy less entropy."""
    name = "sharp"
    def __init__(self, entropy_bonus=0.1, **options):
        super().__init__(entropy_bonus, **options)

class Needy(TokenCrossEntropyLoss):
    def __init__(self, teacher):
        super().__init__()
'''


def test_own_metrics_and_losses(answers, words, tmp_path, monkeypatch):
    (tmp_path / "own_text_parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    options = {"epochs": 1, "trials": 1, "folds": 2, "metric": "own_text_parts:shorter"}
    context, _ = prepare(Request(answers, task="text", objectives="own_text_parts:Sharp", **options))
    cell = run_job(context, Job("objective", "own_text_parts:Sharp", ((0, 0),)))[0]
    assert 0 <= cell.values["score"] <= 3
    assert not context.metric.greater_is_better
    with pytest.raises(InputError, match="needs teacher"):
        prepare(Request(answers, task="text", objectives="own_text_parts:Needy", **options))
    with pytest.raises(InputError, match=r"subclass of steepest.core.token_loss.TokenLoss"):
        prepare(Request(answers, task="text", objectives="own_text_parts:shorter", **options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "y"}, "--target is for tables"),
        ({"group": "y"}, "--group is for tables"),
        ({"size": 8}, "--size is for images"),
        ({"noise": 0.1}, "--noise: label noise is for classes"),
        ({"vary": "optimizer"}, "texts compare objectives"),
        ({"model": "tabm"}, "'tabm' is no folder; for texts gpt"),
        ({"objectives": "ldr"}, "unknown objective 'ldr'. Known: token_cross_entropy"),
        ({"objectives": "emmo"}, "did you mean 'emo'"),
        ({"metric": "accuracy"}, "unknown metric 'accuracy'"),
        ({"task": "texts"}, "did you mean 'text'"),
        ({"task": "auto", "prompt": "question"}, "--prompt is for JSON lines"),
    ],
)
def test_what_means_nothing_for_texts_is_refused(answers, options, said):
    with pytest.raises(InputError) as caught:
        check_asked(Request(answers, **{"task": "text", **options}))
    assert said in str(caught.value)


def test_exact_match_is_no_metric_of_a_plain_text(words):
    with pytest.raises(InputError, match=r"unknown metric 'exact_match'|is for .*text"):
        prepare(Request(words, task="text", metric="exact_match", folds=2))


def test_arrays_are_no_text():
    with pytest.raises(InputError, match="expected a text file"):
        prepare(Request(np.zeros((3, 2)), np.zeros(3), task="text"))


def test_the_catalogue_declares_what_texts_compare():
    declared = {row.text: row.slug for row in systems() if row.text is not None}
    assert sorted(declared) == list(range(1, len(declared) + 1))
    assert declared[1] == "token-cross-entropy"
    known = known_text_objectives()
    assert len(known) == len(declared)
    assert all(issubclass(cls, TokenLoss) for cls in known.values())


def test_each_loss_gets_what_its_constructor_names(answers):
    context, _ = prepare(Request(answers, task="text", folds=2))
    info = context.text_info((0, 0), 0)
    known = known_text_objectives()
    losses = {name: token_loss_of(cls, info, {}) for name, cls in known.items()}
    assert losses["direct_coverage"].answer == "sequence"
    assert losses["number_token_loss"].numbers.tolist() == list(range(10))
    assert losses["emo"].directions.shape[0] == len(info.vocabulary.words)
    assert token_loss_of(known["direct_coverage"], info, {"n": 3.0}).n == 3.0


def test_neighbours_stand_near_each_other():
    table = neighbours(torch.tensor([[0, 1, 0, 1, 2, 2, 2, 2, 3, 3]]), 4)
    assert table.shape == (4, 4)
    assert torch.equal(table, table.T)
    assert float(table[0, 1]) > float(table[0, 2])
    assert bool((table.diagonal() >= 1).all())
    rows = torch.tensor([[2, 1, 3, 0], [1, 3, 1, 0]])  # ends, and what fills rows beyond them
    padded = torch.nn.functional.pad(rows, (0, 40))
    assert torch.equal(neighbours(padded, 4, end=0), neighbours(rows, 4, end=0))


def test_a_diverged_training_counts_as_the_worst(answers):
    context, _ = prepare(Request(answers, task="text", epochs=1, trials=1, folds=2))
    outcome = TextOutcome(np.full((20, 2), np.nan))
    assert context.metric(np.full(20, 2.0), outcome) == -np.inf


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer of bytes."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("gpt")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    bytes_alone = tokenizers.Tokenizer(tokenizers.models.BPE())
    bytes_alone.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=257, special_tokens=["<end>"], initial_alphabet=alphabet)
    bytes_alone.train_from_iterator(["0"], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token="<end>")
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(tokenizer), **sizes))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_the_costs_of_a_given_model_wait_for_it(answers):
    """Whether a loss can be made is asked before the model is read: not by a table of all pairs of its tokens."""
    info = prepare(Request(answers, task="text", folds=2))[0].text_info((0, 0), 0)
    assert cost_embedding(replace(info, pretrained=True, model=None)).shape == (len(info.vocabulary.words), 1)


def test_nobody_gets_an_unknown_character_right():
    words = Characters("q=")
    rows = [(f"q{'=' * i}", "x") for i in range(3)]
    tokens, labels = (torch.as_tensor(a) for a in encoded(words, rows, answers=True, most=6))

    class Sure(LanguageModel):
        """Says the unknown character, then the end."""

        def hidden(self, tokens):
            return torch.nn.functional.one_hot(labels.clamp_min(0), 4).float()

    model = Sure(4, 6, width=4, heads=1)
    model.head = torch.nn.Identity()
    model.head.weight = torch.eye(4)
    outcome = scored(model, torch.stack([tokens, labels], 1), words.unknown)
    assert outcome.predicted[:, 1].tolist() == [1.0, 1.0, 1.0]  # the end alone
    assert scored(model, torch.stack([tokens, labels], 1)).predicted[:, 1].tolist() == [2.0, 2.0, 2.0]


def test_prompts_and_halves_fit_as_a_whole(tmp_path, words):
    rows = [{"prompt": f"what is the number of item {i:02}?", "answer": "0"} for i in range(14)]
    path = write(tmp_path / "long.jsonl", [*rows, {"prompt": "list", "answer": "abcdefghij" * 3}])
    for data in (path, words):
        texts = prepare(Request(data, task="text", folds=2))[0].table
        model = TextModel()
        most, answer = model.most(texts), model.answer(texts)
        split = TextSplit(Characters.of([a + b for a, b in texts.rows]), most, answer, texts.answers, ())
        pairs = prompts_of(texts, np.arange(len(texts.rows)))
        seen = []

        class Noting(LanguageModel):
            def hidden(self, tokens):
                seen.append(tokens.shape[1])  # noqa: B023
                return super().hidden(tokens)

        small = Noting(len(split.vocabulary.words), most)
        small.head.weight.data[0] = -1e3 * small.head.weight.data[0].sign()
        given = completions(small, split, [prompt for prompt, _ in pairs])
        assert min(seen) >= min(len(prompt) for prompt, _ in pairs)
        assert max(seen) <= most
        assert max(map(len, given)) <= answer
        assert max(len(prompt) for prompt, _ in pairs) <= most - answer + 1
        assert max(len(wanted) for _, wanted in pairs) <= answer


def test_an_encoding_that_is_none_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text " * 300, encoding="utf-8")
    for name in ("nonsense", "rot13"):
        with pytest.raises(InputError, match=f"encoding: '{name}' is unknown"):
            prepare(Request(str(path), task="text", encoding=name))


@pytest.mark.slow
def test_a_given_model_is_trained_on_and_saved_with_its_tokenizer(folder, answers, tmp_path):
    from transformers import AutoModelForCausalLM

    options = {**SMALL, "model": folder, "objectives": "emo", "out": tmp_path}
    done = steepest.compare(answers, **options)
    assert done.results["protocol"]["model"] == folder
    winner = done.winner
    assert len(winner.predict(["1+1="])) == 1
    before = AutoModelForCausalLM.from_pretrained(folder)
    after = AutoModelForCausalLM.from_pretrained(done.folder / "winner" / "model")
    rows = torch.arange(12).unsqueeze(0)
    assert not torch.equal(before(rows).logits, after(rows).logits)
    assert torch.equal(after(rows).logits, winner.model(rows))
    assert steepest.compare(answers, **options).results["fold_scores"] == done.results["fold_scores"]


@pytest.mark.slow
def test_other_weights_are_another_run(folder, answers, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    options = {"task": "text", "folds": 2, "trials": 1, "epochs": 1, "model": str(copied)}
    first = prepare(Request(answers, **options))[0].settings.code
    state = load_file(copied / "model.safetensors")
    before = find_text_model(str(copied))
    save_file({k: v + 1 for k, v in state.items()}, copied / "model.safetensors", {"format": "pt"})
    assert prepare(Request(answers, **options))[0].settings.code != first
    assert find_text_model(str(copied)) is not before


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused(tmp_path, missing, answers):
    for name in {"config.json", "model.safetensors"} - {missing}:
        (tmp_path / name).write_text("{}")
    pattern = "config.json" if missing == "config.json" else r"\*.safetensors"
    with pytest.raises(InputError, match=f"has no {pattern}"):
        check_asked(Request(answers, task="text", model=str(tmp_path)))


def test_trainings_end_when_the_time_is_over(answers):
    from steepest.comparison.design.deadline import OutOfTime

    context, _ = prepare(Request(answers, task="text", epochs=60, trials=1, folds=2))
    recipe = recipe_of(context, context.objective("glow"), lambda: True)
    with pytest.raises(OutOfTime):
        train(recipe, [member_of(context, (0, 0), 0, context.trials("glow")[0])])


@pytest.mark.slow
def test_the_command_compares_a_text_to_its_end(words, tmp_path):
    ran = CliRunner().invoke(
        app, ["compare", words, "--task", "text", "--epochs", "1", "--trials", "1", "--folds", "2", "--budget", "60s",
              "--out", str(tmp_path), "--workers", "1"],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "cross-entropy, nats a token" in ran.output
    assert "prompts.txt" in ran.output
