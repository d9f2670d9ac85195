"""Which rule grades a problem, and what is said of it."""

import pytest

from grpo_jax import errors, types
from grpo_jax.rewards import answer, rules

KINDS = {
  "number": ["42", "-0.5", r"\frac{1}{2}", "5%", "1,234", "5 dollars", "2e-06"],
  "choice": ["C", "(B)", r"\text{(A)}"],
  "text": [r"\text{even}", "Saturday", "4:30"],
  "math": [r"\sqrt{2}", "x+1", "(1,2)", "1,2", r"[0,\infty)", "y=2x"],
}


def problem(reference, source="jsonl"):
  return types.Problem("How much?", reference, source, "")


@pytest.mark.parametrize("source", ["jsonl", "", "preferences"])
def test_without_a_source_the_reference_chooses_the_rule(source):
  for rule, references in KINDS.items():
    for reference in references:
      asked = problem(reference, source)
      assert answer.rule_for(asked) == rule
      right = f"<answer>{reference}</answer>", f"\\boxed{{{reference}}}"
      scores = answer.accuracy([asked] * 3, [*right, "no idea"]).scores
      assert scores == [1.0, 1.0, 0.0], reference


def test_a_named_rule_refuses_references_that_it_does_not_fit():
  for rule in ("number", "choice", "text"):
    for kind, references in KINDS.items():
      for reference in references:
        (graded,) = answer.grades([problem(reference, rule)], ["5"])
        assert (graded.outcome == "ungradable") == (kind != rule)


def test_a_source_that_is_none_of_ours_is_an_error_with_the_nearest():
  problems = [problem("1"), problem("2"), problem("3", "maths")]
  message = (
    r"Problem 3 of the 3 of config.data \('How much\?'\).*'maths'.*'math'\?"
  )
  with pytest.raises(errors.ConfigError, match=message):
    rules.check({"accuracy": 1.0}, problems, "config.data")
  with pytest.raises(errors.ConfigError, match="'maths'.*did you mean 'math'"):
    answer.accuracy(problems, ["1", "2", "3"])


def test_other_terms_take_any_source():
  problems = [problem("3", "chat"), problem("3", "math")]
  section = {"accuracy": dict(weight=1.0, only_for=("math",)), "format": 1.0}
  assert rules.check(section, problems, "config.data") == ""
  assert rules.check({"format": 1.0}, problems, "config.data") == ""


def test_it_is_said_which_rules_grade_what_names_no_source():
  problems = [problem(r) for r in ("1", "2", r"\sqrt{2}", "(C)")]
  said = rules.check({"accuracy": 1.0}, problems, "config.data")
  assert "number 50%, math 25%, choice 25% of 4 tried" in said
  named = [problem("1", "gsm8k")]
  assert rules.check({"accuracy": 1.0}, named, "config.data") == ""
