"""pass@1 on held-out problems: how it is drawn and what it averages."""

import helpers
import jax
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.data import datasets, prompts, tokenizer
from grpo_jax.rewards import answer
from grpo_jax.sampling import decode
from grpo_jax.stages import evaluate

TOK = tokenizer.ByteTokenizer()
CFG = helpers.tiny(num_layers=1, vocab_size=264)
PROBLEMS = [
  types.Problem("35,22,13,19=35?", "22+13", "pair_sum", prompt)
  for prompt in ("35?", "a longer one", "x", "1,2=3?", "last")
]


def make_questions(prompts_per_batch, **sampling):
  texts = [problem.prompt for problem in PROBLEMS]
  settings = dict(group_size=4, max_new_tokens=6) | sampling
  return evaluate.Questions(
    PROBLEMS,
    prompts.encode_prompts(texts, TOK, 14),
    14,
    prompts_per_batch,
    decode.SamplingParams(**settings),
  )


def run(questions, sizes=None):
  mesh = helpers.make_mesh(**sizes or {})
  with jax.set_mesh(mesh):
    params = helpers.make_params(CFG, mesh)
    return evaluate.evaluate(
      params, CFG, TOK, questions, jax.random.key(0), mesh
    )


@pytest.fixture(scope="module")
def whole():
  return run(make_questions(5))


@pytest.mark.parametrize("prompts_per_batch", [2, 3])
def test_batches_give_the_completions_of_one(prompts_per_batch, whole):
  results, texts, _ = run(make_questions(prompts_per_batch))
  assert texts == whole[1]
  assert results == whole[0]


def test_eight_devices_give_the_completions_of_one(whole):
  results, texts, _ = run(make_questions(2), helpers.EIGHT)
  assert texts == whole[1]
  assert results == whole[0]


def test_results_are_means_over_problems_and_samples(whole, monkeypatch):
  """The first text of each problem is right, and problem 3 has two."""
  right = np.zeros((5, 4), np.float32)
  right[:, 0] = 1
  right[3, 1] = 1
  monkeypatch.setattr(
    answer, "accuracy", lambda problems, texts: right.ravel().tolist()
  )
  results, texts, scores = run(make_questions(5))
  assert results["pass@1"] == pytest.approx(right.mean())
  means = right.mean(axis=1)
  assert results["pass@1_stderr"] == pytest.approx(
    means.std(ddof=1) / np.sqrt(5)
  )
  assert (results["problems"], results["samples"]) == (5, 4)
  assert len(texts) == 20
  np.testing.assert_array_equal(scores.terms["accuracy"], right.ravel())
  assert "pass@1 30.0%" in evaluate.summary(results)


@pytest.mark.parametrize("num_problems, asked", [(0, 8), (3, 3), (99, 8)])
def test_the_first_problems_are_asked(num_problems, asked, tmp_path):
  section = dict(
    data=dict(name="addition", split="test", test_size=8),
    num_problems=num_problems,
    prompt_slots=48,
    prompts_per_batch=4,
    sampling={},
  )
  template = prompts.read_template("plain")
  questions = evaluate.make_questions(section, TOK, template, tmp_path)
  every = datasets.load(**section["data"], data_dir=tmp_path)
  assert [p.question for p in questions.problems] == [
    every[i].question for i in range(asked)
  ]


def test_greedy_samples_are_all_the_same():
  _, texts, _ = run(make_questions(5, temperature=0.0))
  for p in range(5):
    assert len(set(texts[4 * p : 4 * p + 4])) == 1


def test_lengths_count_tokens_of_real_problems_only(whole):
  results, texts, _ = whole
  assert 1 <= results["mean_length"] <= 6
  assert results["truncated"] <= 1
  assert len(texts) == 20
