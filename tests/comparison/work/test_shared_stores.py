"""One contract of stores, which a file and a database keep alike: claims, leases, the first result stays."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steepest.comparison.design.deadline import EVER
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.levels import Level
from steepest.comparison.errors import InputError
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.postgres import PostgresStore, postgres_runs
from steepest.comparison.work.store import Store, cell_of

LEVEL = Level(900, 60, 8)
TRIAL = {"scores": [0.25, None], "epochs": [3, 0], "curves": [[1 / 3], [None]], "seconds": 0.5}
Opening = Callable[[], Store]


def job(fold: int = 0, name: str = "focal", kind: str = "objective") -> Job:
    return Job(kind, name, ((0, fold),), LEVEL)


def cell(fold: int = 0, score: float | None = 0.5, name: str = "focal", outcome: Outcome | None = None) -> CellResult:
    outcome = outcome or Outcome(np.array([0, 1, 1]), np.full((3, 2), 0.5), np.array([0.1, -0.2, 0.3]))
    return CellResult(
        "objective", name, 0, fold, {"score": score, "inner": [0.1, None]}, outcome, LEVEL.text, {1: TRIAL}
    )


def test_what_is_put_comes_back(opening: Opening) -> None:
    store = opening()
    store.set_facts({"answered": EVER, "data": "a\n'b\" % ? é", "settings": {"x": [1 / 3, None]}})
    assert store.put([cell(0), cell(1, 1 / 3)]) == 2
    again = opening()
    assert (again.fact("answered"), again.fact("data")) == (EVER, "a\n'b\" % ? é")
    assert (again.fact("settings"), again.fact("nothing")) == ({"x": [1 / 3, None]}, None)
    assert again.finished() == {("focal", 0, 0, LEVEL.text), ("focal", 0, 1, LEVEL.text)}
    assert again.cells(LEVEL)["focal"][0, 1] == {"score": 1 / 3, "inner": [0.1, None], "kind": "objective"}
    assert again.trials("focal", (0, 0), LEVEL) == {1: TRIAL}
    assert again.outcome("focal", 0, 0, LEVEL).predicted.tolist() == [0, 1, 1]
    with pytest.raises(KeyError):
        again.outcome("focal", 0, 7, LEVEL)
    assert (again.done, again.counters()) == (2, [1, 1])


def test_the_first_result_stays(opening: Opening) -> None:
    first, second = opening(), opening()
    assert first.put([cell(0, 0.5)]) == 1
    late = cell(0, 0.9)
    late.trials = {1: {**TRIAL, "seconds": 9.0}, 2: TRIAL}
    assert second.put([late, cell(1, 0.7)]) == 1
    assert {pair: values["score"] for pair, values in first.cells(LEVEL)["focal"].items()} == {(0, 0): 0.5, (0, 1): 0.7}
    assert first.trials("focal", (0, 0), LEVEL) == {1: TRIAL}
    assert sorted(first.counters()) == [1, 2]


def test_nan_and_infinity_survive(opening: Opening) -> None:
    numbers = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324, 1 / 3])
    rows = np.array([[np.nan, np.nan], [0.25, 0.75]])
    store = opening()
    store.put([cell(0, None, outcome=Outcome(numbers)), cell(1, outcome=Outcome(np.array([0, 1]), rows, numbers[1:3]))])
    again = opening()
    assert again.outcome("focal", 0, 0, LEVEL).predicted.tobytes() == numbers.tobytes()
    back = again.outcome("focal", 0, 1, LEVEL)
    assert np.array_equal(back.probabilities, rows, equal_nan=True)
    assert back.decision.tolist() == [np.inf, -np.inf]
    assert again.cells(LEVEL)["focal"][0, 0]["score"] is None


def test_a_claim_holds_until_it_is_put_given_back_or_over(opening: Opening) -> None:
    one, two = opening(), opening()
    assert one.claim(job(), 60)
    assert one.claim(job(), 60), "who holds it may claim it again"
    assert not two.claim(job(), 60)
    assert two.claim(job(1), 60), "another cell is free"
    two.release(job())  # not its own
    assert not two.claim(job(), 60)
    one.release(job())
    assert two.claim(job(), 60)
    two.put([cell(0)])
    assert not one.claim(job(), 60), "it is finished"
    assert not two.claim(job(), 60)
    assert one.claim(job(2), -1.0), "a lease that is over at once"
    assert two.claim(job(2), 60)
    one.renew(60)
    assert not one.claim(job(2), 60), "it was taken over"
    one.put([cell(2, 0.1)])  # and is done nevertheless, first
    assert two.put([cell(2, 0.1)]) == 0


def test_a_lease_is_renewed_for_all_that_one_holds(opening: Opening) -> None:
    one, two = opening(), opening()
    for fold in range(3):
        assert one.claim(job(fold), -1.0)
    one.renew(60, processes=3)
    assert [two.claim(job(fold), 60) for fold in range(3)] == [False] * 3
    assert (one.helpers(), two.helpers()) == (0, 3)
    one.leave()
    assert [two.claim(job(fold), 60) for fold in range(3)] == [True] * 3
    assert two.helpers() == 0
    one.renew(-1.0, processes=3)
    assert two.helpers() == 0, "its time is over"


def test_of_many_who_claim_at_once_one_gets_it(opening: Opening) -> None:
    opening()
    got: list[int] = []
    gate = threading.Barrier(6)
    members = [opening() for _ in range(6)]

    def claim(number: int) -> None:
        with members[number].again() as store:
            gate.wait()
            got.extend(number * 100 + fold for fold in range(20) if store.claim(job(fold), 60))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number % 100 for number in got) == list(range(20))


def test_many_may_make_a_run_at_once(tmp_path: Path) -> None:
    """A file that another process is making is no run of another version."""
    gate = threading.Barrier(8)
    failed: list[Exception] = []

    def make(number: int) -> None:
        for turn in range(10):
            gate.wait()
            try:
                Store(tmp_path / f"run{turn}").close()
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_run_is_made_although_another_process_has_begun_to_write(tmp_path: Path) -> None:
    """Changing the journal is the one statement with which SQLite does not wait for others itself."""
    file = sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None, check_same_thread=False)
    file.execute("begin immediate")
    timer = threading.Timer(0.2, file.rollback)
    timer.start()
    try:
        Store(tmp_path).close()
    finally:
        timer.join()
        file.close()


def test_jobs_are_posted_taken_given_up_and_withdrawn(opening: Opening) -> None:
    one, two = opening(), opening()
    learner = job(0, "knn", "classical")
    ends_at = one.now() + 1000
    for each in (job(0), job(1), learner):
        one.post(each, ends_at, float("inf"))
    found = {posted.cell: posted for posted in two.posted()}
    assert set(found) == {cell_of(job(0)), cell_of(job(1)), ("knn", 0, 0, "900/0/0")}
    knn = found["knn", 0, 0, "900/0/0"]
    assert (knn.kind, knn.size, knn.taken, knn.seconds) == ("classical", f"{LEVEL.text};", False, EVER)
    assert knn.ends_at == pytest.approx(ends_at)
    assert two.claim(job(0), 60)
    assert two.claim(learner, 60)
    two.give_up(learner)
    found = {posted.cell: posted for posted in one.posted()}
    assert (found[cell_of(job(0))].taken, found[cell_of(learner)].taken, found[cell_of(learner)].seconds) == (
        True,
        False,
        0,
    )
    one.post(job(0), ends_at, 5.0)
    assert not one.claim(job(0), 60), "to post a job again takes it from nobody"
    one.withdraw([job(0), job(1)])
    assert {posted.cell for posted in one.posted()} == {cell_of(job(0)), cell_of(learner)}
    one.withdraw([job(0), learner], taken=True)
    assert one.posted() == []


def test_a_cell_that_somebody_has_put_is_read_as_a_result(opening: Opening) -> None:
    store = opening()
    assert store.result(job()) is None
    store.put([cell(0)])
    found = opening().result(job())
    assert (found.name, found.repeat, found.fold, found.level, found.stored) == ("focal", 0, 0, LEVEL.text, True)
    assert found.values == {"score": 0.5, "inner": [0.1, None]}
    assert found.outcome.decision == pytest.approx([0.1, -0.2, 0.3])


def test_one_command_holds_the_run(opening: Opening) -> None:
    first, second = opening(), opening()
    with first.locked(), pytest.raises(InputError, match="is being computed by another process"), second.locked():
        pass
    with second.locked():
        assert first.claim(job(), 60), "workers may join"


def test_data_are_kept_as_they_are(opening: Opening) -> None:
    rows = [("data", "file", "a.csv", bytes(range(256))), ("test", "file", "b.csv", b"")]
    opening().keep_data(rows)
    opening().keep_data(rows[:1])
    assert opening().kept_data() == rows


def test_nothing_is_written_where_a_part_fails(opening: Opening) -> None:
    store, bad = opening(), cell(2)
    bad.name = None  # type: ignore[assignment]
    with pytest.raises(Exception, match=r"(?i)not.null"):
        store.put([cell(0), bad])
    assert store.finished() == set()
    assert store.put([cell(0)]) == 1


# ---- of a database alone ----


@pytest.fixture
def database(postgres: Any, tmp_path: Path) -> Iterator[PostgresStore]:
    store = PostgresStore(tmp_path / f"run_{uuid.uuid4().hex[:8]}", url=postgres.url)
    yield store
    store.close()


def test_a_database_that_is_killed_and_started_again_is_waited_for(postgres: Any, database: PostgresStore) -> None:
    database.put([cell(0)])
    with database.locked():
        postgres.kill()
        starting = threading.Thread(target=postgres.start)
        starting.start()
        assert database.put([cell(1)]) == 1
        starting.join()
        other = database.again()
        with pytest.raises(InputError, match="another process"), other.locked():
            pass
        other.close()
    assert database.finished() == {("focal", 0, 0, LEVEL.text), ("focal", 0, 1, LEVEL.text)}
    assert database.counters() == [1, 1]


def test_who_computes_a_job_is_known_after_the_database_was_killed(postgres: Any, database: PostgresStore) -> None:
    for fold in range(2):
        database.post(job(fold), 1e12, 60.0)
    assert database.claim(job(0), 600.0)
    postgres.kill()
    postgres.start()
    member = PostgresStore(database.folder, url=postgres.url)
    assert not member.claim(job(0), 600.0)
    member.close()
    assert database.take_back(job(1))
    postgres.kill()
    postgres.start()
    assert [posted.fold for posted in database.posted()] == [0]


def test_a_commit_of_which_nobody_heard_is_counted_once(database: PostgresStore) -> None:
    import psycopg

    real = database.connection

    class LostAfterCommit:
        """A connection that is lost when what it has done is written, before anybody is told."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        @contextmanager
        def transaction(self) -> Iterator[None]:
            with real.transaction():
                yield
            real.close()
            raise psycopg.OperationalError("the connection is lost after the commit")

    database.connection = LostAfterCommit()
    assert database.put([cell(0)]) == 0
    assert database.finished() == {("focal", 0, 0, LEVEL.text)}
    assert database.counters() == [1]


def test_runs_of_a_database_are_listed_and_not_made_by_reading(postgres: Any, database: PostgresStore) -> None:
    assert database.folder.name in postgres_runs(postgres.url)
    with pytest.raises(InputError, match="no run 'nothing'"):
        PostgresStore(Path("nothing"), url=postgres.url, make=False)
    assert "nothing" not in postgres_runs(postgres.url)


@pytest.mark.parametrize("url", ["mysql://x", "run.sqlite", "postgresql://me:secret@127.0.0.1:1/none"])
def test_what_is_no_database_is_one_line_without_a_password(url: str) -> None:
    with pytest.raises(InputError) as refused:
        PostgresStore(Path("abc"), url=url)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_run_has_a_name_that_can_stand_in_statements(postgres: Any) -> None:
    with pytest.raises(InputError, match="expected the ID of a run"):
        PostgresStore(Path('a"; drop schema public'), url=postgres.url)
