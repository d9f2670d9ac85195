"""Weighing rewards, and rewards that misbehave."""

import math
import re
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from grpo_jax import errors, types
from grpo_jax.rewards import combine
from grpo_jax.rewards import section as section_lib
from grpo_jax.rewards import terms as terms_lib

GOOD = "<think>22+13=35 ok</think><answer>22+13</answer>"
PROBLEM = types.Problem("35,22,13,19=35?", "22+13", "pair_sum", "")
UNGRADABLE = types.Problem("?", "", "pair_sum", "")


MINE = dict(weight=1.0, function=f"{__name__}:mine")
RETURNED = []


def mine(problems, completions):
  return RETURNED[0]


def returns(monkeypatch, value):
  monkeypatch.setattr(f"{__name__}.RETURNED", [value])


def test_rewards_are_the_weighted_sum_of_their_terms():
  scores = combine.score(
    {"accuracy": 1.0, "format": 0.25},
    [PROBLEM] * 4,
    [GOOD, GOOD.replace("13<", "19<"), "<answer>13+22</answer>", "no"],
  )
  np.testing.assert_array_equal(scores.total, [1.25, 0.25, 1.0, 0.0])
  np.testing.assert_array_equal(scores.terms["accuracy"], [1, 0, 1, 0])
  np.testing.assert_array_equal(scores.terms["format"], [1, 1, 0, 0])
  assert scores.valid.all()
  assert scores.total.dtype == np.float32
  assert scores.terms["format"].dtype == np.float32


def test_fractions_are_not_truncated(monkeypatch):
  returns(monkeypatch, [0.9, np.float32(0.5), jnp.float32(0.25), True, 2])
  scores = combine.score({"mine": MINE}, [PROBLEM] * 5, [GOOD] * 5)
  np.testing.assert_allclose(scores.total, [0.9, 0.5, 0.25, 1.0, 2.0])


def test_a_row_without_a_score_is_not_valid_and_earns_nothing():
  scores = combine.score(
    {"format": 1.0, "accuracy": 1.0}, [PROBLEM, UNGRADABLE], [GOOD, GOOD]
  )
  np.testing.assert_array_equal(scores.valid, [True, False])
  np.testing.assert_array_equal(scores.total, [2.0, 0.0])
  np.testing.assert_array_equal(scores.terms["accuracy"], [1.0, np.nan])
  np.testing.assert_array_equal(scores.terms["format"], [1.0, 1.0])


def test_a_term_of_weight_zero_is_logged_and_changes_nothing():
  scores = combine.score(
    {"format": 0.5, "accuracy": 0}, [PROBLEM, UNGRADABLE], [GOOD, GOOD]
  )
  assert scores.valid.all()
  np.testing.assert_array_equal(scores.total, [0.5, 0.5])
  np.testing.assert_array_equal(scores.terms["accuracy"], [1.0, np.nan])


def test_negative_weights_subtract():
  scores = combine.score({"accuracy": 1.0, "format": -2.0}, [PROBLEM], [GOOD])
  assert scores.total[0] == -1.0


@pytest.mark.parametrize(
  "value",
  [
    [1.0],
    [1.0, 2.0, 3.0],
    None,
    1.0,
    [math.nan, 1.0],
    [1.0, math.inf],
    [1.0, 1e300],
    [1.0, "0.5"],
    [1.0, [0.5]],
    [1.0, 1j],
    [1.0, object()],
    iter([1.0, 2.0]),
    np.array(2.0),
  ],
  # Without addresses, which differ from process to process.
  ids=lambda value: re.sub(r" object at 0x\w+", "", str(value)),
)
def test_a_reward_that_misbehaves_is_named_in_one_sentence(monkeypatch, value):
  returns(monkeypatch, value)
  with pytest.raises(ValueError, match="'mine'") as error:
    combine.score({"accuracy": 1, "mine": MINE}, [PROBLEM] * 2, [GOOD] * 2)
  assert re.fullmatch(r"Reward .*[^.]\.", str(error.value))


def test_an_unknown_reward_is_answered_with_the_nearest_name():
  with pytest.raises(ValueError, match="'acuracy'; did you mean 'accuracy'"):
    combine.score({"acuracy": 1.0}, [PROBLEM], [GOOD])
  with pytest.raises(ValueError, match="there are 'accuracy', 'code', "):
    combine.check({"zzz": 1.0})


@pytest.mark.parametrize("weight", [math.nan, math.inf, "1", None, [1.0]])
def test_a_weight_must_be_a_finite_number(weight):
  with pytest.raises(ValueError, match="'format' must be a finite number"):
    combine.check({"format": weight})


def test_there_must_be_rewards_and_a_problem_for_each_completion():
  with pytest.raises(ValueError, match="No rewards"):
    combine.check({})
  with pytest.raises(ValueError, match="2 completions .* 1 problems"):
    combine.score({"format": 1.0}, [PROBLEM], [GOOD, GOOD])


# Options, gates, and functions of the user's own.


def length(problems, completions, *, most, scale=1.0):
  return [scale * min(len(text), most) for text in completions]


def tokens(problems, completions, *, lengths, truncated):
  return np.where(truncated, -1.0, lengths)


def nobody_knows(problems, completions):
  return [None] * len(completions)


def outcomes(problems, completions):
  empty = [not text for text in completions]
  kept = [
    None if e else len(t) for e, t in zip(empty, completions, strict=True)
  ]
  return terms_lib.Result([1.0] * len(completions), {"e": empty, "n": kept})


_MEET = threading.Barrier(2, timeout=30)


def meets(problems, completions):
  _MEET.wait()  # Breaks unless two terms are in here at once.
  return [float(threading.current_thread() is threading.main_thread())] * len(
    completions
  )


@terms_lib.on_device
def device(problems, completions):
  return [float(threading.current_thread() is threading.main_thread())] * len(
    completions
  )


@terms_lib.on_device
def fails(problems, completions):
  raise OSError("The device is gone.")


def own(name, weight=1.0, **options):
  return dict(weight=weight, function=f"{__name__}:{name}", **options)


def score(texts=("a", "bcd"), **section):
  return combine.score(section, [PROBLEM] * len(texts), list(texts))


def test_options_of_a_term_are_those_of_its_function():
  scores = score(
    size=own("length", 2.0, most=2), half=own("length", most=9, scale=0.5)
  )
  np.testing.assert_array_equal(scores.terms["size"], [1, 2])
  np.testing.assert_array_equal(scores.terms["half"], [0.5, 1.5])
  np.testing.assert_array_equal(scores.total, [2.5, 5.5])


def test_a_config_dict_is_as_good_as_a_dict():
  section = config_dict.ConfigDict()
  section.rewards = dict(
    accuracy=1.0, format=dict(weight=1, only_if=dict(accuracy=1.0))
  )
  combine.check(section.rewards)
  scores = combine.score(section.rewards, [PROBLEM], [GOOD])
  np.testing.assert_array_equal(scores.total, [2.0])


def test_a_gated_term_counts_where_the_other_reaches_its_least_value():
  gated = own("length", most=9, only_if={"accuracy": 1.0})
  wrong = GOOD.replace("13<", "19<")
  scores = score([GOOD, wrong], accuracy=1.0, size=gated)
  np.testing.assert_array_equal(scores.total, [10.0, 0.0])
  np.testing.assert_array_equal(scores.terms["size"], [9.0, 9.0])
  assert scores.valid.all()


def test_a_term_behind_a_closed_gate_needs_no_score():
  gated = own("nobody_knows", only_if={"accuracy": 1.0})
  scores = score([GOOD, "no"], accuracy=1.0, mine=gated)
  np.testing.assert_array_equal(scores.valid, [False, True])
  np.testing.assert_array_equal(scores.total, [0.0, 0.0])


def test_a_gate_without_a_score_leaves_its_row_without_a_reward():
  gated = own("length", most=9, only_if={"gate": 0.5})
  scores = score(gate=own("nobody_knows", 0.0), size=gated)
  assert not scores.valid.any()


CHAT = types.Problem("greet ann?", "", "chat", "")
ASKED = []


def watches(problems, completions, *, lengths):
  ASKED.append(([p.source for p in problems], list(completions), lengths))
  return terms_lib.Result(lengths * 1.0, {"twice": lengths * 2})


WATCHES = dict(weight=0.5, function=f"{__name__}:watches", only_for=("chat",))


def test_a_term_for_some_sources_is_asked_about_their_rows_alone():
  ASKED.clear()
  scores = combine.score(
    {"accuracy": dict(weight=1.0, only_for=("pair_sum",)), "it": WATCHES},
    [PROBLEM, CHAT, PROBLEM, CHAT],
    [GOOD, "a", "no", "b"],
    lengths=np.array([1, 2, 3, 4]),
  )
  np.testing.assert_array_equal(scores.total, [1.0, 1.0, 0.0, 2.0])
  np.testing.assert_array_equal(scores.terms["it"], [np.nan, 2, np.nan, 4])
  np.testing.assert_array_equal(
    scores.terms["accuracy"], [1, np.nan, 0, np.nan]
  )
  np.testing.assert_array_equal(
    scores.metrics["it/twice"], [np.nan, 4, np.nan, 8]
  )
  assert scores.valid.all()
  ((sources, texts, lengths),) = ASKED
  assert (sources, texts) == (["chat", "chat"], ["a", "b"])
  np.testing.assert_array_equal(lengths, [2, 4])


def test_a_term_without_a_row_is_not_asked():
  ASKED.clear()
  section = {"accuracy": 1.0, "it": WATCHES}
  scores = combine.score(section, [PROBLEM], [GOOD], lengths=np.array([1]))
  assert scores.total[0] == 1.0 and not ASKED
  np.testing.assert_array_equal(scores.terms["it"], [np.nan])


def test_behind_a_gate_that_does_not_apply_a_term_adds_nothing():
  scores = combine.score(
    {
      "accuracy": dict(weight=1.0, only_for=("pair_sum",)),
      "format": dict(weight=0.5, only_if=dict(accuracy=1.0)),
    },
    [PROBLEM, CHAT],
    [GOOD, GOOD],
  )
  np.testing.assert_array_equal(scores.total, [1.5, 0.0])
  assert scores.valid.all()


def test_a_term_counts_from_its_step_on():
  section = {"accuracy": 1.0, "format": dict(weight=0.5, from_step=3)}
  args = section, [PROBLEM], [GOOD]
  assert combine.score(*args, step=2).total[0] == 1.0
  assert np.isnan(combine.score(*args, step=2).terms["format"][0])
  assert combine.score(*args, step=3).total[0] == 1.5
  assert combine.score(*args).total[0] == 1.5


def test_a_problem_that_no_term_rewards_is_an_error():
  section = {"accuracy": dict(weight=1.0, only_for=("pair_sum",), from_step=2)}
  with pytest.raises(ValueError, match="No term .* of source 'chat'"):
    combine.score(section, [PROBLEM, CHAT], [GOOD, GOOD])
  combine.check_sources(section, {"pair_sum": 2})
  with pytest.raises(ValueError, match="for problems of source 'chat' after 5"):
    combine.check_sources(section, {"pair_sum": 2, "chat": 5})
  with pytest.raises(ValueError, match="source 'pair_sum' after 1 steps"):
    combine.check_sources(section, {"pair_sum": 1})
  with pytest.raises(ValueError, match="names 'pair_sum', .* mean 'pair_sums'"):
    combine.check_sources(section, {"pair_sums": 2})


def test_what_a_term_logs_besides_is_kept_by_row():
  scores = score(["", "bcd"], mine=own("outcomes"))
  np.testing.assert_array_equal(scores.metrics["mine/e"], [1, 0])
  np.testing.assert_array_equal(scores.metrics["mine/n"], [np.nan, 3])
  assert list(scores.terms) == ["mine"]


def test_lengths_in_tokens_are_given_to_terms_that_ask_for_them():
  scores = combine.score(
    {"n": own("tokens")},
    [PROBLEM] * 2,
    ["a", "b"],
    lengths=np.array([3, 4]),
    truncated=np.array([False, True]),
  )
  np.testing.assert_array_equal(scores.total, [3.0, -1.0])


def test_terms_run_at_once_and_those_of_the_device_in_the_callers_thread():
  finish = combine.begin(
    {"a": own("meets"), "b": own("meets"), "c": own("device")}, [PROBLEM], ["x"]
  )
  scores = finish()
  assert [float(scores.terms[name][0]) for name in "abc"] == [0.0, 0.0, 1.0]


def test_an_error_in_a_term_of_the_device_is_raised_by_the_caller():
  with pytest.raises(OSError, match="device is gone"):
    score(a=own("fails"), format=1.0)


@pytest.mark.parametrize(
  "section, sentence",
  [
    (dict(format={}), "config.rewards.format lacks the field 'weight'"),
    (dict(format=dict(weight=1, wieght=2)), "no field 'wieght'; did you mean"),
    (dict(format=dict(weight=1, most=2)), "no field 'most'; there are"),
    (dict(a=own("length")), "config.rewards.a lacks the field 'most'"),
    (dict(a=own("length", most=1, mots=2)), "'mots'; did you mean 'most'"),
    (dict(a=own("tokens", lengths=3)), "no field 'lengths'"),
    (dict(a=own("missing")), "'a' cannot be imported from .*'missing'"),
    (dict(a=dict(weight=1, function="no_such_module:f")), "cannot be imported"),
    (dict(a=dict(weight=1, function="math.sqrt")), "must be 'package.module:f"),
    (dict(a=dict(weight=1, function="math:pi")), "math:pi, is no function"),
    (dict(a=1.0), "no reward 'a'; .* function='package.module:function'"),
    (dict(format=own("length", most=1)), "'format' is a built-in reward"),
    (dict(format=dict(weight=1, only_if=3)), "only_if must name terms"),
    (
      dict(format=dict(weight=1, only_if=dict(acuracy=1)), accuracy=1),
      "'acuracy', which is no other reward of this config; did you mean 'acc",
    ),
    (dict(format=dict(weight=1, only_if=dict(format=1))), "no other reward"),
    (
      dict(format=dict(weight=1, only_if=dict(accuracy="1")), accuracy=1),
      "only_if.accuracy must be a finite number",
    ),
    (dict(format=dict(weight=1, only_for="chat")), "only_for must be a tuple"),
    (dict(format=dict(weight=1, only_for=())), "only_for must be a tuple"),
    (dict(format=dict(weight=1, from_step=-1)), "from_step must be a number"),
  ],
  ids=str,
)
def test_a_mistake_in_the_config_is_told_in_one_sentence(section, sentence):
  with pytest.raises(errors.ConfigError, match=sentence):
    combine.check(section)


def test_every_built_in_reward_can_be_imported():
  for name, path in section_lib.REWARDS.items():
    assert callable(section_lib.load(name, path))
