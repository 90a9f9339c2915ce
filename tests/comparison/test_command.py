"""The commands compare, runs, report and predict, as a user sees them."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bencheval.evaluator import BenchmarkEvaluator

import steepest
from steepest.cli import run
from steepest.comparison import Winner
from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import Job
from steepest.comparison.work import timing
from steepest.comparison.work.cells import CellResult, run_job
from steepest.comparison.work.store import Store

Command = Callable[..., tuple[int, str, str]]
FAST = ("--objectives", "comp_sum", "--no-classical", "--repeats", 1, "--folds", 2, "--trials", 2, "--epochs", 2)
FAST = (*FAST, "--workers", 1)
SAME = {"objectives": "comp_sum", "classical": False, "repeats": 1, "folds": 2, "trials": 2, "epochs": 2, "workers": 1}


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory, write_csv: Callable[[Path], Path]) -> Path:
    """A folder in which ``steepest compare small.csv`` was run as the tests below run it."""
    folder = tmp_path_factory.mktemp("finished")
    words = ["compare", write_csv(folder / "small.csv").name, *map(str, FAST)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setattr("sys.argv", ["steepest", *words])
        assert run(words) == 0
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """The folder of that run, as if it had been made in this test's own."""
    shutil.copytree(finished_once / "steepest-runs", tmp_path / "steepest-runs")
    (folder,) = folders(tmp_path)
    return folder


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "steepest-runs").glob("*"))


def refused(command: Command, tmp_path: Path, *words: object, exit_code: int = 2) -> str:
    """The one line on stderr of a command that is refused; it leaves nothing behind."""
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    code, out, err = command(*words)
    assert code == exit_code
    assert not out or (out.startswith("reading ") and out.count("\n") == 1)
    assert err.startswith("steepest: error: ")
    assert err.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "steepest-runs").exists()
    return err


def test_a_comparison_ends_with_its_sentence_report_and_files(
    command: Command, csv: Path, tmp_path: Path, drawn: None
) -> None:
    code, out, err = command("compare", csv, *FAST)
    assert (code, err) == (0, "")
    (folder,) = folders(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert results["sentence"] in out
    assert f"So do this: {results['advice']}\n" in out
    assert {"cross_entropy", results["winner"]["objective"]} & set(results["advice"].replace(",", " ").split())
    assert f"report: {Path('steepest-runs') / folder.name / 'report.html'}" in out
    page = (folder / "report.html").read_text()
    assert results["sentence"] in page.replace("&#39;", "'")
    assert page.count("<svg viewBox=") == 12  # headline, tier, pairs and costs in two widths; two of each multiple
    assert shlex.split(results["command"])[:3] == ["steepest", "compare", str(csv)]
    for name in ("leaderboard.csv", "leaderboard.md", "winner/winner.json", "winner/winner.safetensors"):
        assert (folder / name).stat().st_size > 0
    assert set(Store(folder).counters()) == {1}


def test_the_same_command_again_computes_nothing(
    command: Command, csv: Path, tmp_path: Path, finished: Path, monkeypatch: Any
) -> None:
    before = contents(finished)
    created = json.loads(before["results.json"][0])["created"]

    def computed(*_: Any, **__: Any) -> None:
        raise AssertionError("something is computed again")

    for name in ("api.assemble", "work.run.Schedule", "report.publish.fit_winner"):
        monkeypatch.setattr(f"steepest.comparison.{name}", computed)
    code, out, _ = command("compare", csv, *FAST)
    assert code == 0
    assert "plan:" not in out
    assert f"finished on {created}: nothing is computed\n" in out
    assert contents(finished) == before
    assert folders(tmp_path) == [finished]
    assert "finished: nothing is left to compute" in command("compare", csv, *FAST, "--dry-run")[1]
    comparison = steepest.compare(csv, out=tmp_path / "steepest-runs", **SAME)
    assert comparison.results == json.loads(before["results.json"][0])
    assert contents(finished) == before


def test_another_region_of_practical_equivalence_is_another_verdict_on_the_same_cells(
    command: Command, csv: Path, tmp_path: Path, finished: Path
) -> None:
    before = json.loads((finished / "results.json").read_text())
    assert command("compare", csv, *FAST, "--rope", 0.2)[0] == 0
    after = json.loads((finished / "results.json").read_text())
    assert (before["rope"]["asked"], after["rope"]["asked"], after["rope"]["value"]) == (False, True, 0.2)
    assert (after["rows"][0]["p"], after["fold_scores"]) == (before["rows"][0]["p"], before["fold_scores"])
    assert set(Store(finished).counters()) == {1}
    assert "nothing is computed" in command("compare", csv, *FAST, "--rope", 0.2)[1]
    command("compare", csv, *FAST)
    assert json.loads((finished / "results.json").read_text())["rope"] == before["rope"]
    assert folders(tmp_path) == [finished]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Of the files that a finished run shows, with their dates."""
    files = [*folder.glob("*.[hcmj]*"), *(folder / "winner").iterdir()]
    assert len(files) == 6
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_what_a_finished_run_lost_is_made_again_under_its_date(
    command: Command, csv: Path, tmp_path: Path, finished: Path
) -> None:
    before = contents(finished)
    for name in ("report.html", "results.json"):
        (finished / name).unlink()
    assert "nothing is computed; written again: report.html, results.json\n" in command("compare", csv.name, *FAST)[1]
    after = contents(finished)
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert after["leaderboard.csv"] == before["leaderboard.csv"]
    (finished / "results.json").unlink()
    assert command("report", "last")[0] == 0
    assert contents(finished)["results.json"][0] == before["results.json"][0]
    (finished / "winner" / "winner.json").unlink()
    command("compare", csv.name, *FAST)
    assert {name: data for name, (data, _) in contents(finished).items()} == {
        n: data for n, (data, _) in before.items()
    }
    store = Store(finished)
    store.set_fact("results", {"version": "what is no result"})
    store.close()
    assert command("compare", csv.name, *FAST)[0] == 0
    assert set(Store(finished).counters()) == {1}


def test_changed_settings_or_data_are_another_run(command: Command, csv: Path, tmp_path: Path, finished: Path) -> None:
    command("compare", csv, *FAST, "--seed", 1)
    csv.write_text(csv.read_text() + "1.0,2.0,red,yes\n")
    command("compare", csv, *FAST)
    assert len(folders(tmp_path)) == 3


def test_dry_run_prints_the_plan_and_makes_nothing(command: Command, csv: Path, tmp_path: Path) -> None:
    code, out, err = command("compare", csv, *FAST, "--dry-run")
    assert (code, err) == (0, "")
    assert "plan: 2 objectives and 0 classical learners in 2 outer folds; 28 trainings in" in out
    assert "cross_entropy: at most" in out or "cross_entropy: about" in out
    assert not (tmp_path / "steepest-runs").exists()


def test_quiet_prints_the_sentence_and_the_report(command: Command, csv: Path, tmp_path: Path) -> None:
    code, out, err = command("compare", csv, *FAST, "--quiet")
    assert (code, err) == (0, "")
    sentence, report = out.splitlines()
    assert sentence == json.loads((folders(tmp_path)[0] / "results.json").read_text())["sentence"]
    assert Path(report).is_file()


@pytest.mark.parametrize("more", [(), ("--quiet",)])
def test_json_alone_is_on_stdout(command: Command, csv: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    code, out, err = command("compare", csv, *FAST, "--json", *more)
    assert code == 0
    assert json.loads(out)["sentence"] == json.loads((folders(tmp_path)[0] / "results.json").read_text())["sentence"]
    assert ("plan:" in err) is not bool(more)


def test_over_budget_offers_commands_that_fit(
    command: Command, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(context: Context, job: Job) -> float:
        """A slower machine whose clock is exact; a tenth of a training's time does not shrink with the trials."""
        s = context.settings
        return 0.2 * s.epochs * (s.trials + 0.8) * len(job.cells)

    monkeypatch.setattr(timing, "time_job", cost)
    words = ["compare", csv, *FAST, "--epochs", 30, "--patience", 30, "--trials", 8, "--repeats", 4]
    need = plan_seconds(command("compare", *words[1:], "--dry-run")[1])
    code, out, err = command(*words, "--strict", "--budget", need * 0.6 / 60)
    assert code == 2
    assert "plan:" in out
    first, *offers = err.splitlines()
    assert first.startswith("steepest: error: the plan takes about")
    assert [shlex.split(offer)[-2] for offer in offers] == ["--trials", "--repeats", "--budget"]
    assert not (tmp_path / "steepest-runs").exists()
    for offer in offers:
        program, *again = shlex.split(offer)
        assert program == "steepest"
        assert command(*again, "--dry-run")[0] == 0, offer
    assert not (tmp_path / "steepest-runs").exists()


def slow_clock(monkeypatch: pytest.MonkeyPatch, cell: float) -> None:
    """A machine on which a cell of an objective would take so many seconds a trial and epoch at full length."""
    monkeypatch.setattr(
        timing,
        "time_job",
        lambda context, job: cell * context.settings.trials * context.settings.epochs * len(job.cells),
    )


def test_the_gate_goes_by_what_early_stopping_leaves(
    command: Command, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full length far over the budget; the first job, run and kept, tells that trainings stop at once."""
    slow_clock(monkeypatch, 0.1)
    computed: list[Job] = []

    def counting(context: Context, job: Job, *more: Any) -> list[CellResult]:
        computed.append(job)
        return run_job(context, job, *more)

    for module in ("work.run", "work.executor"):
        monkeypatch.setattr(f"steepest.comparison.{module}.run_job", counting)
    words = (*FAST, "--epochs", 100, "--patience", 1)  # 4 cells of 20 s: 80 s, or 0.8 s
    code, out, err = command("compare", csv, *words, "--strict", "--budget", 0.5)
    assert (code, err) == (0, "")
    assert "; about " in out
    (folder,) = folders(tmp_path)
    assert Store(folder).counters() == [1, 1, 1, 1]
    assert len(computed) == len({(job.name, job.cells) for job in computed}) == 4


def test_a_comparison_ends_with_a_report_however_slow_the_machine(
    command: Command, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_clock(monkeypatch, 1e6)
    words = ("--objectives", "comp_sum,focal,ldr", "--folds", 3, "--repeats", 1, "--workers", 1, "--metric", "accuracy")
    words = (*words, "--no-classical", "--trials", 3, "--epochs", 12)
    code, _, err = command("compare", csv, *words, "--budget", 1, "--strict")
    assert code == 2
    assert "over the budget of 1m" in err
    assert folders(tmp_path) == []
    code, _, err = command("compare", csv, *words, "--budget", "0.01s")
    assert (code, err) == (0, "")
    (folder,) = folders(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    said = "1 trial instead of 3, 8 epochs instead of 12, 1 of 4 objectives, 1 of 3 folds"
    assert results["sentence"].startswith(
        "Too little time to compare objectives: in the first fold cross_entropy reaches"
    )
    assert f"(untuned, {said})" in results["sentence"]
    assert "a constant prediction 0." in results["sentence"]
    assert results["data"]["warnings"][-1].startswith(f"cut to fit the budget: {said}; --budget ")
    assert said in (folder / "report.html").read_text()
    assert results["advice"].startswith("Take more time before you choose (--budget ")
    basis = results["basis"]
    assert (basis["trials"], basis["epochs"], basis["rows"], basis["folds"], basis["whole"]) == (1, 8, 48, 1, False)
    assert (results["headline"]["p"], results["headline"]["low"]) == (None, None)
    assert "nothing is computed" in command("compare", csv, *words, "--budget", "0.01s")[1]
    slow_clock(monkeypatch, 1e-6)  # a larger budget goes on with the run, at a higher level where that fits
    with monkeypatch.context() as patch:  # killed when all is computed: the old answer is none any more
        patch.setattr("steepest.comparison.report.publish.fit_winner", interrupted)
        assert command("compare", csv, *words, "--budget", 20)[0] == 130
    code, _, err = command("compare", csv, *words, "--budget", 20)
    assert (code, err) == (0, "")
    assert folders(tmp_path) == [folder]
    results = json.loads((folder / "results.json").read_text())
    assert results["basis"]["cut"] == []
    assert results["sentence"].startswith("Choosing the objective")
    assert len(results["folds"]) == 3
    assert command("compare", csv, *words, "--budget", "1h", "--strict")[0] == 0
    assert "nothing is computed" in command("compare", csv, *words, "--budget", "1h", "--strict")[1]
    assert Store(folder).done == 12


def test_what_fits_is_not_cut(command: Command, csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_clock(monkeypatch, 1e-6)
    code, out, _ = command("compare", csv, *FAST, "--dry-run")
    assert code == 0
    assert "over the budget" not in out
    slow_clock(monkeypatch, 1e3)
    assert "over the budget of 10m: less is computed, as much as fits" in command("compare", csv, *FAST, "--dry-run")[1]


def plan_seconds(text: str) -> float:
    """The seconds that a dry run printed."""
    number, unit = text.split("; about ")[1].split(" on ")[0].split()
    big, _, small = number.partition(":")
    return {"s": 1, "min": 60, "h": 3600}[unit] * float(big) + (60 if unit == "h" else 1) * float(small or 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "knd"), "did you mean 'kind'?"),
        (("--objectives", "comp_sumo"), "did you mean 'comp_sum'?"),
        (("--objectives", ","), "expected default, all, or names"),
        (("--objectives", "huber"), "'huber' does not fit a binary target"),
        (("--objectives", "own_parts:Nothing"), "has no 'Nothing'"),
        (("--objectives", "own_parts:small"), "expected a subclass of steepest.core.objective.Objective"),
        (("--folds", -1), "--folds"),
        (("--folds", "abc"), "folds"),
        (("--folds", 1), "--folds: expected an integer in 2..50, got 1"),
        (("--repeats", 0), "--repeats: expected an integer in 1..100, got 0"),
        (("--trials", 0), "--trials: expected an integer in 1..1024, got 0"),
        (("--epochs", 0), "--epochs"),
        (("--patience", 0), "--patience"),
        (("--batch", 0), "--batch"),
        (("--seed", -1), "--seed"),
        (("--noise", 2), "--noise: expected a share in [0, 1), got 2.0"),
        (("--noise", "nan"), "--noise: expected a share in [0, 1), got nan"),
        (("--noise", 0.1, "--task", "regression", "--target", "height"), "label noise is for classes"),
        (("--device", "cuda:77"), "--device: 'cuda:77' is not here"),
        (("--device", "abacus"), "--device: 'abacus' is not here"),
        (("--model", "nothing:here"), "cannot import 'nothing'"),
        (("--model", "residul"), "did you mean 'residual'?"),
        (("--model", "own_parts:no_network"), "expected the function to give a torch.nn.Module, got int"),
        (("--model", "own_parts:failing"), "out of ideas"),
        (("--model", "own_parts:smal"), "did you mean 'small'?"),
        (("--metric", "nonsense"), "unknown metric 'nonsense'"),
        (("--metric", "rmse"), "is for regression, not for binary"),
        (("--budget", "soon"), "--budget: expected a time above 0 (90s, 10m, 2h, 1h30m, plain minutes), got 'soon'"),
        (("--cut",), "--cut: what does not fit the budget is always cut by now; --strict refuses it instead"),
        (("--rope", -0.1), "--rope: expected a difference of the metric, 0 or above, got -0.1"),
        (("--export", "elo"), "--export: expected bencheval, got 'elo'"),
        (("--workers", 0), "--workers: expected an integer in 1..256, got 0"),
        (("--task", "poetry"), "task"),
        (("--drop", "size"), "size"),
        (("--drop", "@nowhere.txt"), "cannot read 'nowhere.txt'"),
        (("--group", "size"), "size"),
        (("--test", "nowhere.csv"), "nowhere.csv"),
        (("--nonsense", 1), "--nonsense"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    command: Command, csv: Path, tmp_path: Path, own: str, words: tuple[object, ...], said: str
) -> None:
    assert said in refused(command, tmp_path, "compare", csv, *words, "--quiet")


def test_bad_files_are_one_line_and_leave_nothing(command: Command, tmp_path: Path) -> None:
    assert "nowhere.csv" in refused(command, tmp_path, "compare", "nowhere.csv")
    (tmp_path / "folder").mkdir()
    assert "folder" in refused(command, tmp_path, "compare", "folder")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 20)
    assert "binary.csv" in refused(command, tmp_path, "compare", "binary.csv")
    (tmp_path / "empty.csv").write_text("")
    assert "empty" in refused(command, tmp_path, "compare", "empty.csv")
    (tmp_path / "few.csv").write_text("a,b,c\n1,2,x\n2,1,y\n")
    refused(command, tmp_path, "compare", "few.csv")
    refused(command, tmp_path, "compare")


def test_one_bad_file_among_several_stops_before_the_first_training(
    command: Command, csv: Path, tmp_path: Path
) -> None:
    assert "nowhere.csv" in refused(command, tmp_path, "compare", csv, "nowhere.csv", *FAST)


def test_an_output_folder_that_cannot_be_is_one_line(command: Command, csv: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = command("compare", csv, *FAST, "--out", "file", "--quiet")
    assert code == 2
    assert err.startswith("steepest: error: cannot keep the run in")
    assert err.count("\n") == 1


def test_a_full_disk_is_one_line_and_the_command_goes_on_later(
    command: Command, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Store.put, []

    def put(self: Store, results: list) -> int:
        calls.append(results)
        if len(calls) == 2:
            raise sqlite3.OperationalError("database or disk is full")
        return real(self, results)

    monkeypatch.setattr(Store, "put", put)
    code, out, err = command("compare", csv, *FAST, "--quiet")
    assert (code, out) == (1, "")
    assert err == "steepest: failed: database or disk is full; the same command goes on\n"
    (folder,) = folders(tmp_path)
    assert len(Store(folder).finished()) == 1
    assert not (folder / "results.json").exists()
    listed = command("runs")[1]
    assert "1/4 cells  goes on with: steepest compare" in listed
    code, _, err = command("report", "last")
    assert code == 2
    assert "has 1 of 4 cells; this goes on: steepest compare" in err
    code, _, err = command("predict", "last", csv)
    assert code == 2
    assert "no saved winner" in err
    assert command("compare", csv, *FAST, "--quiet")[0] == 0
    assert Store(folder).counters() == [1, 1, 1, 1]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_is_one_line_and_130(
    command: Command, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("steepest.comparison.work.executor.run_job", interrupted)
        code, out, err = command("compare", csv, *FAST, "--quiet")
    assert (code, out) == (130, "")
    assert err == "steepest: interrupted; what is finished is kept, and the same command goes on\n"
    assert command("compare", csv, *FAST, "--quiet")[0] == 0


def test_a_run_under_way_is_refused_elsewhere(command: Command, csv: Path, tmp_path: Path, finished: Path) -> None:
    with Store(finished).locked():
        code, _, err = command("compare", csv, *FAST, "--quiet")
    assert code == 2
    assert err == f"steepest: error: run {finished.name} is being computed by another process\n"


def test_runs_lists_them_newest_first(command: Command, csv: Path, tmp_path: Path, finished: Path) -> None:
    command("compare", "iris", *FAST)
    first, second = command("runs")[1].splitlines()
    results = json.loads((finished / "results.json").read_text())
    when = results["created"][:16].replace("T", " ")
    assert "  iris  accuracy  4/4 cells  2 trials, 2 epochs, 75 rows, 2 folds  2" in first
    assert f"  small.csv  auroc  4/4 cells  2 trials, 2 epochs, 36 rows, 2 folds  {when}  Choosing the obj" in second
    assert command("runs")[1].splitlines() == [first, second]


def test_two_runs_stand_side_by_side_with_what_differs(
    command: Command, csv: Path, tmp_path: Path, finished: Path
) -> None:
    command("compare", csv, *FAST, "--epochs", 3)
    (other,) = (path for path in folders(tmp_path) if path != finished)
    code, out, err = command("runs", finished.name[:8], other.name[:8])
    assert (code, err) == (0, "")
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert out.splitlines()[0].split() == [finished.name, other.name]
    both = [json.loads((folder / "results.json").read_text()) for folder in (finished, other)]
    for name in ("cross_entropy", "comp_sum"):
        means = [{r["name"]: r for r in own["rows"]}[name]["metrics"]["auroc"]["mean"] for own in both]
        assert [cell.split(",")[0] for cell in lines[name].split() if cell[0].isdigit()] == [f"{m:.4f}" for m in means]
    assert "at most 2, patience" in lines["epochs"]
    assert "at most 3, patience" in lines["epochs"]
    assert "seed" not in lines  # the same in both
    assert out.endswith("runs are not tested against each other\n")
    command("compare", "iris", *FAST)
    assert "their scores are not comparable" in command("runs", "last", other.name)[1]


def test_runs_are_deleted_after_a_question(
    command: Command, csv: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, said in (
        (("--delete",), "--delete: name the runs"),
        (("zzz", "--delete", "--yes"), "no run 'zzz'"),
        (("last", "--delete"), f"--yes deletes {finished.name} without asking"),
        (("last", "--yes"), "--yes: goes with --delete"),
    ):
        code, _, err = command("runs", *words)
        assert code == 2
        assert said in err
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(finished, elsewhere / "run")
    code, _, err = command("runs", elsewhere / "run", "--delete", "--yes")
    assert code == 2
    assert "is no run under" in err
    (tmp_path / "steepest-runs" / "linked").symlink_to(elsewhere / "run")
    assert "is no run under" in command("runs", "linked", "--delete", "--yes")[2]
    (tmp_path / "steepest-runs" / "linked").unlink()
    with Store(finished).locked():
        code, _, err = command("runs", "last", "--delete", "--yes")
    assert (code, finished.exists()) == (2, True)
    assert "is being computed by another process" in err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []
    for answer in (False, True):
        monkeypatch.setattr("typer.confirm", lambda text, answer=answer: asked.append(text) or answer)
        code, out, _ = command("runs", "last", "--delete")
        assert code == 0
        assert finished.exists() is not answer
        assert ("deleted " in out) is answer
    assert all(finished.name in text for text in asked)
    broken = tmp_path / "steepest-runs" / "broken"
    broken.mkdir()
    (broken / "run.sqlite").write_bytes(b"no database")
    assert command("runs", "broken", "--delete", "--yes")[0] == 0
    assert folders(tmp_path) == []
    assert (elsewhere / "run" / "run.sqlite").is_file()


def test_a_report_over_several_runs(
    command: Command, csv: Path, tmp_path: Path, finished: Path, write_csv: Callable[[Path], Path]
) -> None:
    second = write_csv(tmp_path / "second.csv")
    second.write_text("\n".join(second.read_text().splitlines()[:-12]) + "\n")
    command("compare", second, *FAST)
    (other,) = (path for path in folders(tmp_path) if path != finished)
    (finished / "report.html").unlink()
    code, out, err = command("report", finished.name, other.name, "--export", "bencheval")
    assert (code, err) == (0, "")
    assert out.startswith("across 2 data sets, 2 objectives:\n")
    page, exported = (Path(line) for line in out.splitlines()[-2:])
    assert f'href="{finished.name}/report.html"' in page.read_text()
    assert (finished / "report.html").is_file()
    assert set(pd.read_csv(exported)["task"]) == {"small.csv", "second.csv"}
    command("compare", csv, *FAST, "--epochs", 3)
    assert "are on the same data" in command("report", "last", finished.name)[2]
    assert command("report", finished.name, "--export", "bencheval")[1].splitlines()[-1].endswith("bencheval.csv")
    assert "--export: expected bencheval" in command("report", "last", "--export", "elo")[2]


def test_report_writes_it_again(command: Command, csv: Path, tmp_path: Path, finished: Path) -> None:
    page = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    code, out, _ = command("report", "last")
    assert code == 0
    assert any(line.endswith("report.html") for line in out.splitlines())
    assert (finished / "report.html").read_bytes() == page
    code, _, err = command("report", "zzz")
    assert code == 2
    assert "no run 'zzz'" in err


def test_predict_is_the_winners_predict(command: Command, csv: Path, tmp_path: Path, finished: Path) -> None:
    rows = pd.read_csv(csv).drop(columns="kind")
    rows.to_csv(tmp_path / "new.csv", index=False)
    expected = Winner.load(finished / "winner").predict_file(tmp_path / "new.csv")
    code, out, err = command("predict", "last", "new.csv")
    assert (code, err) == (0, "")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(out)), expected)
    code, out, err = command("predict", finished.name[:6], csv, "--to", "said.csv")
    assert (code, out) == (0, "")
    assert "72 predictions in said.csv" in err
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "said.csv"), expected)


def test_predict_refuses_in_one_line(command: Command, csv: Path, tmp_path: Path, finished: Path) -> None:
    pd.read_csv(csv).drop(columns="width").to_csv(tmp_path / "lacking.csv", index=False)
    for words, said in (
        (("last", "lacking.csv"), "no column 'width'"),
        (("last", "nowhere.csv"), "nowhere.csv"),
        (("zzz", csv), "no run 'zzz'"),
        (("last", csv, "--to", "no/where.csv"), "--to: cannot write"),
    ):
        code, out, err = command("predict", *words)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1


def test_a_fixed_test_file_takes_the_place_of_the_folds(command: Command, csv: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(csv)
    frame.iloc[:52].to_csv(tmp_path / "train.csv", index=False)
    frame.iloc[52:].to_csv(tmp_path / "test.csv", index=False)
    options = ("--objectives", "comp_sum", "--no-classical", "--trials", 2, "--epochs", 2, "--workers", 1, "--json")
    code, out, _ = command("compare", "train.csv", "--test", "test.csv", *options)
    assert code == 0
    results = json.loads(out)
    assert results["headline"]["test"] == "paired bootstrap on the fixed test set"
    assert len(results["fold_scores"]["comp_sum"]) == 1


def test_several_data_sets_are_exported_for_bencheval(
    command: Command, csv: Path, tmp_path: Path, write_csv: Callable[[Path], Path]
) -> None:
    second = write_csv(tmp_path / "second.csv")
    second.write_text("\n".join(second.read_text().splitlines()[:-12]) + "\n")
    code, out, _ = command("compare", csv, second, *FAST, "--export", "bencheval")
    assert code == 0
    (path,) = (tmp_path / "steepest-runs").glob("*bencheval.csv")
    assert f"exported: {path.relative_to(tmp_path)}" in out.replace("\n", "")
    frame = pd.read_csv(path)
    assert frame["method"].value_counts().to_dict() == {"cross_entropy": 4, "comp_sum": 4}
    assert (frame["time_train_s"] > 0).all()
    BenchmarkEvaluator(seed_column="seed", columns_to_agg_extra=["time_train_s"]).verify_data(frame)
    for folder in (path for path in folders(tmp_path) if path.is_dir()):
        results = json.loads((folder / "results.json").read_text())
        own = frame[frame["task"] == results["data"]["name"]]
        expected = [1 - score for name in ("cross_entropy", "comp_sum") for score in results["fold_scores"][name]]
        assert own["metric_error"].tolist() == pytest.approx(expected)


def test_two_data_sets_say_that_the_test_has_no_power(command: Command, csv: Path) -> None:
    options = (*FAST, "--metric", "accuracy")
    code, out, _ = command("compare", csv, "iris", *options)
    assert code == 0
    assert "== iris" in out
    assert "across 2 data sets, 2 objectives:" in out
    assert "no power" in out
    code, out, _ = command("compare", csv, "iris", *options, "--json")
    assert [r["data"]["name"] for r in json.loads(out)["data_sets"]] == ["small.csv", "iris"]
    assert "no power" in json.loads(out)["across"]["message"]
