"""GRPO on one page: short enough to read, and it runs."""

import pathlib
import runpy
import sys

import pytest

PAGE = pathlib.Path(__file__).parents[1] / "experiments" / "one_page.py"


@pytest.fixture(scope="module")
def page():
  return runpy.run_path(str(PAGE), run_name="page")


def test_it_is_one_page():
  assert len(PAGE.read_text("utf-8").splitlines()) <= 200


def test_the_rule_takes_the_last_number_alone(page):
  rewarded = {
    "#42\n": 1.0,
    "7+5=12 30+12=42#42\n": 1.0,
    "#41#42\n": 1.0,
    "#42": 0.0,  # No end.
    "42\n": 0.0,
    "#42#41\n": 0.0,
    "#142\n": 0.0,
  }
  for text, expected in rewarded.items():
    assert page["reward"]((17, 25), text) == expected, text


def test_no_held_out_sum_is_in_the_corpus(page):
  held_out, training = set(page["HELD_OUT"]), set(page["TRAINING"])
  assert not held_out & training
  assert held_out | training == set(page["PAIRS"])


def test_a_document_fits_and_its_thoughts_are_right(page):
  rng = page["random"].Random(0)
  thoughts = 0
  for _ in range(500):
    a, b = rng.choice(page["PAIRS"])
    text = page["document"](a, b, rng)
    prompt, _, completion = text.partition(":")
    assert len(prompt) + 1 == page["S"] and len(completion) <= page["N"]
    if "=" in completion:
      thoughts += 1
      assert page["reward"]((a, b), completion) == 1.0
  assert 75 < thoughts < 175


def test_a_few_steps_from_nothing(page, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["one_page.py", "--smoke"])
  page["main"]()
  lines = capsys.readouterr().out.splitlines()
  assert lines[-2].startswith("base: held-out pass@1 ")
  assert lines[-1].startswith("trained: held-out pass@1 ")
