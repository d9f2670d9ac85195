"""Which prompts come next."""

import json

import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.rl import curriculum

P = 4


def make_source(count=12, chat_every=3):
  problems = [
    types.Problem(f"q{i}", "", "chat" if i % chat_every == 0 else "sum", "")
    for i in range(count)
  ]
  return prompts.PromptSource(
    problems,
    tokenizer.ByteTokenizer(),
    "{question}",
    num_prompts=P,
    prompt_slots=8,
    seed=3,
  )


def make(source=None, pass_rates=None, **from_step):
  return curriculum.Curriculum(
    source or make_source(),
    seed=0,
    from_step=dict(chat=0, sum=0) | from_step,
    pass_rates=pass_rates,
  )


def outcomes(*rates):
  """Groups of 4 completions with these pass rates."""
  rows = [i < 4 * rate for rate in rates for i in range(4)]
  return {"accuracy": np.array(rows, float)}


def test_without_settings_prompts_are_a_function_of_the_step():
  source = make_source()
  batches = make(source)
  for step in range(8):
    asked = batches.next(step)
    batch, problems = source(step)
    assert asked.turn == step and asked.problems == problems
    np.testing.assert_array_equal(asked.batch.tokens, batch.tokens)
    batches.record(asked.indices, {})
  assert batches.metrics() == {}


def test_problems_of_a_source_are_asked_from_its_step_on():
  batches = make(chat=5)
  seen = [
    {problem.source for problem in batches.next(step).problems}
    for step in range(10)
  ]
  assert all(sources == {"sum"} for sources in seen[:5])
  assert "chat" in set.union(*seen[5:])


def test_every_problem_of_the_other_sources_comes_once_an_epoch():
  batches = make(chat=99)
  asked = [i for step in range(4) for i in batches.next(step).indices]
  assert sorted(asked[:8]) == [i for i in range(12) if i % 3]
  assert sorted(asked[8:]) == sorted(asked[:8])


def test_what_is_solved_always_or_never_is_asked_less_often():
  """Problems 0 to 3 always, 4 to 7 never, the others half of the time."""
  batches = make(pass_rates=curriculum.PassRates(share=0.25))
  counts = np.zeros(12)
  rates = np.repeat([1.0, 0.0, 0.5], 4)
  for step in range(300):
    asked = batches.next(step)
    np.add.at(counts, asked.indices, 1)
    batches.record(asked.indices, outcomes(*rates[asked.indices]))
  always, never, half = counts.reshape(3, 4).sum(axis=1)
  # Of every epoch a quarter of each kind, and all of the others.
  assert always + never + half == 300 * P
  assert 0.15 < always / half < 0.35 and 0.15 < never / half < 0.35
  metrics = batches.metrics()
  assert metrics["curriculum/rated"] == 12
  assert metrics["curriculum/easy"] == metrics["curriculum/hard"] == 1 / 3
  assert metrics["curriculum/passed_over"] >= 0


def test_a_running_rate_forgets():
  rates = curriculum.PassRates(memory=0.75, margin=0.0)
  batches = make(pass_rates=rates)
  batches.record([5], outcomes(1.0))
  assert batches.metrics()["curriculum/easy"] == 1
  batches.record([5], outcomes(0.5))
  assert batches.get_state()["rates"] == {"5": 0.75 * 1.0 + 0.25 * 0.5}
  assert batches.metrics()["curriculum/easy"] == 0
  batches.record([5], {"accuracy": np.full(4, np.nan)})
  assert batches.get_state()["rates"] == {"5": 0.875}


def test_it_goes_on_where_its_state_was_taken():
  def go(batches, steps):
    history = []
    for step in steps:
      asked = batches.next(step)
      history.append((asked.turn, asked.indices))
      batches.record(
        asked.indices, outcomes(*((i % 5) / 4 for i in asked.indices))
      )
    return history

  settings = curriculum.PassRates(share=0.3, memory=0.9)
  whole = make(pass_rates=settings, chat=4)
  go(whole, range(9))
  state = json.loads(json.dumps(whole.get_state()))
  other = make(pass_rates=settings, chat=4)
  other.set_state(state)
  assert go(other, range(9, 30)) == go(whole, range(9, 30))
  assert other.get_state() == whole.get_state()


def test_bad_settings_are_refused_in_one_sentence():
  problems = [types.Problem("", "", source, "") for source in ("sum", "chat")]
  steps = curriculum.first_steps(problems, {"chat": 3})
  assert steps == {"chat": 3, "sum": 0}
  with pytest.raises(ValueError, match="names 'caht', .* there are chat, sum"):
    curriculum.first_steps(problems, {"caht": 3})
  with pytest.raises(ValueError, match="leaves no problem for the first step"):
    curriculum.first_steps(problems, {"chat": 1, "sum": 1})
  for changes in ({"share": 0.0}, {"margin": 0.5}, {"memory": 1.0}):
    with pytest.raises(ValueError, match=f"curriculum.{next(iter(changes))}="):
      curriculum.PassRates(**changes)
