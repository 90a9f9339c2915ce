"""Texts: windows and blocks of a text, prompts and answers, tokens of a training part, errors that name a line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from steepest.comparison.api import prepare
from steepest.comparison.errors import InputError
from steepest.comparison.read.texts import load_texts
from steepest.comparison.read.texts.source import rows_of_lines, sums
from steepest.comparison.read.texts.text_set import WINDOW
from steepest.comparison.read.texts.vocabulary import Characters, encoded
from steepest.comparison.request import Request
from steepest.lab.language import Vocabulary

WORDS = "the quick brown fox jumps over the lazy dog; 12 boxes of 7 jugs.\n"


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path):
    rng = np.random.default_rng(0)
    words = WORDS.split()
    path = tmp_path / "words.txt"
    path.write_text(" ".join(rng.choice(words, 1500)), encoding="utf-8")
    return path


def test_windows_are_the_text_in_order_and_share_no_character(text):
    texts = load_texts(text, folds=3)
    whole = text.read_text()
    assert "".join(window for _, window in texts.rows) == whole[: WINDOW * len(texts.rows)]
    assert len(whole) - WINDOW * len(texts.rows) < WINDOW
    assert texts.groups.tolist() == sorted(texts.groups.tolist())
    assert len(set(texts.groups)) == 30


def test_no_block_of_a_text_lies_on_both_sides_of_a_split(text):
    context, _ = prepare(Request(str(text), task="text", folds=3))
    groups = context.table.groups
    for pair, fold in context.folds.items():
        assert not {*groups[fold.train]} & {*groups[fold.test]}
        for fit, valid in context.inner(pair):
            assert not {*groups[fit]} & {*groups[valid]}


def test_equal_prompts_stay_on_one_side(tmp_path):
    rows = [{"prompt": f"{i % 15}+1=", "answer": str(i)} for i in range(60)]
    context, _ = prepare(Request(str(lines(tmp_path / "r.jsonl", rows)), task="text", folds=3))
    for fold in context.folds.values():
        prompts = [{context.table.rows[place][0] for place in side} for side in (fold.train, fold.test)]
        assert not prompts[0] & prompts[1]
    assert context.table.decisions[-1].startswith("splits: 15 different prompts")


def test_a_vocabulary_knows_nothing_of_the_rows_that_are_held_out(tmp_path):
    rows = [{"prompt": f"{chr(0x4E00 + i)}+{i}=", "answer": str(i)} for i in range(30) for _ in range(2)]
    context, _ = prepare(Request(str(lines(tmp_path / "r.jsonl", rows)), task="text", folds=3))
    for pair, fold in context.folds.items():
        words = context.split(pair, -1).texts.vocabulary.words
        trained = "".join(context.table.rows[place][0] for place in fold.train)
        assert {*words[2:]} <= {*trained, *"0123456789"}
        assert any(context.table.rows[place][0][0] not in words for place in fold.test)


def test_the_second_text_of_a_windows_file_is_the_same(tmp_path, text):
    other = tmp_path / "crlf.txt"
    other.write_bytes(b"\xef\xbb\xbf" + text.read_bytes().replace(b" ", b"\n", 50).replace(b"\n", b"\r\n"))
    again = "".join(window for _, window in load_texts(other, folds=3).rows)
    assert again == text.read_text().replace(" ", "\n", 50)[: len(again)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "1", "answer": "2"}\n{"prompt": \n', "line 2 is not valid JSON"),
        ('{"prompt": "1", "answer": "2"}\n\n{"prompt": "1"}\n', "line 3: no key 'answer'"),
        ('{"prompt": "1", "answer": "2"}\n{"question": "1", "answer": "2"}\n', "line 2: no key 'prompt'"),
        ('{"promt": "1", "answer": "2"}\n', "did you mean 'promt'"),
        ('["1", "2"]\n', "line 1: expected an object with prompt and answer"),
        ('{"prompt": "1", "answer": 2}\n', "line 1: 'answer': expected text, got '2'"),
        ('{"prompt": "", "answer": "2"}\n', "line 1: 'prompt': expected text, got none"),
        ('{"prompt": "1", "prompt": "1", "answer": "2"}\n', "the key 'prompt' stands twice"),
        ('{"prompt": "1", "answer": "2"}\n', "has 1 different prompt: expected at least 20"),
        ('{"prompt": "\\ud800", "answer": "2"}\n', "line 1: 'prompt': expected text, got half of a sign"),
        ("", "is empty"),
    ],
)
def test_bad_json_lines_are_named_by_their_line(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_texts(path, folds=5)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"one line", "has 8 characters in 1 line"),
        (b"a\x00b" * 500, "byte 2 is 0"),
        (b"fine\n\xff\xfe" * 500, "line 2 has the byte 0xff"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, said):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_texts(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"no file .*built-in texts are sums"):
        load_texts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is a folder"):
        load_texts(tmp_path)


def test_another_encoding_and_other_keys(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"frage": f"{i} ä", "antwort": "ö", "more": [1]} for i in range(20)]
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("cp1252"))
    texts = load_texts(path, prompt="frage", answer="antwort", encoding="cp1252", folds=5)
    assert texts.rows[3] == ("3 ä", "ö")
    assert texts.prompt == "frage"
    named = tmp_path / "rows.txt"
    named.write_bytes(path.read_bytes())
    assert load_texts(named, prompt="frage", answer="antwort", encoding="cp1252", folds=5).answers


def test_rows_that_the_small_model_cannot_read_are_left_out_with_a_warning(tmp_path):
    rows = [{"prompt": f"{i}", "answer": "x"} for i in range(20)] + [{"prompt": "y" * 600, "answer": "x"}]
    path = lines(tmp_path / "rows.jsonl", rows)
    texts = load_texts(path, folds=5)
    assert len(texts.rows) == 20
    assert texts.warnings[0].startswith("1 row of over 512 characters left out")
    assert len(load_texts(path, folds=5, tokens=True).rows) == 21


def test_tokens_and_labels_are_those_of_another_reader():
    """The experiments' own vocabulary numbers characters otherwise: the same after translation."""
    pairs = sums()[:20]
    ours, theirs = Characters("0123456789+="), Vocabulary("0123456789+=")
    tokens, labels = encoded(ours, pairs, answers=True, most=99)
    own_tokens, own_labels = theirs.rows(pairs)

    def moved(values):
        return np.where(values > 0, values + 1, values)  # theirs have no number for what is unknown

    assert np.array_equal(tokens, moved(own_tokens.numpy()))
    assert np.array_equal(labels, moved(own_labels.numpy()))


def test_long_rows_lose_the_start_of_the_prompt_and_the_end_of_the_answer():
    words = Characters("abcdefgh")
    tokens, labels = encoded(words, [("abcdef", "gh"), ("a", "bcdefgh")], answers=True, most=4)
    assert words.text(tokens[0].tolist()) == "efgh"
    assert [words.text([t]) if t > 0 else t for t in labels[0].tolist()] == [-100, "g", "h", 0]
    assert words.text(tokens[1].tolist()) == "abcd"


def test_characters_that_occur_once_stand_for_unknown_ones():
    words = Characters.of(["aab", "ab!"])
    assert words.words == ("", "\ufffd", "a", "b")
    assert words.tokens("a?!") == [2, 1, 1]
    assert Characters.from_json(words.to_json(), "here").words == words.words


@pytest.mark.parametrize("stored", [{}, {"characters": []}, {"characters": ["a", "a"]}, {"characters": ["ab"]}, 3])
def test_a_stored_vocabulary_is_checked(stored):
    with pytest.raises(InputError, match="here"):
        Characters.from_json(stored, "here")


def test_empty_lines_are_passed_over():
    assert [number for number, _ in rows_of_lines('\n{"a": "1"}\n  \n{"a": "2"}', "f", ["a"])] == [2, 4]
