"""Reward models of ours: what they read, and scores whatever the layout."""

import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grpo_jax import errors, types
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import heads, scoring, transformer
from grpo_jax.models import params as params_lib
from grpo_jax.reward_models import judge_local, learned, saved
from grpo_jax.reward_models import terms as reward_terms
from grpo_jax.rewards import combine
from grpo_jax.runs import directory
from grpo_jax.sampling import decode, generate

TOKENIZER = tokenizer.ByteTokenizer()
CFG = helpers.tiny(num_layers=1, vocab_size=264)
OUTCOME = learned.Reading("outcome", template="Q: {question}\n")
PROCESS = learned.Reading("process", template="{question}\n")
PROBLEMS = [
  types.Problem(question, "", "mine", question)
  for question in ("What is it?", "Why?", "x", "Is it so long a question?")
]
COMPLETIONS = [
  "<think>One.\n\nTwo is longer.</think>\n\nThree.",
  "Nothing to say.",
  "",
  "<think>a\n\nb\n\nc\n\n" + "d" * 90 + "</think>e",
]


def make_params(mesh=None, seed=0, cfg=CFG):
  """A reward model whose head does something."""
  tree = helpers.make_params(cfg, mesh, seed)
  tree.pop("head", None)
  rng = np.random.default_rng(seed)
  head = {
    "weight": rng.standard_normal(cfg.d_model).astype(np.float32),
    "bias": np.float32(0.3),
  }
  if mesh is None:
    return tree | {"reward": jax.tree.map(jnp.asarray, head)}
  where = params_lib.shardings(heads.scalar_specs(cfg), mesh)
  return tree | {"reward": jax.device_put(head, where)}


def make_model(reading, mesh=None, rows_per_batch=4, max_length=256, **options):
  mesh = mesh or helpers.make_mesh()
  params = make_params(mesh, **options)
  return learned.RewardModel(
    params, CFG, TOKENIZER, mesh, reading, max_length, rows_per_batch
  )


def slow_scalars(ids):
  """The head after each token, of one text alone and without padding."""
  params = make_params()
  tokens = jnp.asarray([ids], jnp.int32)
  positions = jnp.arange(len(ids), dtype=jnp.int32)[None]
  hidden, _ = transformer.forward(
    params, CFG, tokens, positions, jnp.ones_like(tokens)
  )
  head = jax.tree.map(np.float64, params["reward"])
  return np.asarray(hidden[0], np.float64) @ head["weight"] + head["bias"]


def test_the_head_is_a_product_in_float32_of_hidden_states_in_any_type():
  params = make_params()["reward"]
  hidden = jnp.asarray(
    np.random.default_rng(1).standard_normal((2, 3, CFG.d_model)), jnp.bfloat16
  )
  found = heads.scalar(params, hidden)
  assert found.shape == (2, 3) and found.dtype == jnp.float32
  want = np.asarray(hidden, np.float64) @ np.asarray(params["weight"]) + 0.3
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_a_new_head_says_zero_and_has_a_gradient():
  params = params_lib.init_params(jax.random.key(0), learned.param_specs(CFG))
  tokens = jnp.ones((1, 4), jnp.int32)
  positions = jnp.arange(4, dtype=jnp.int32)[None]

  def total(head):
    return jnp.sum(
      scoring.score_scalars(params, CFG, head, tokens, positions, tokens)
    )

  value, gradient = jax.value_and_grad(total)(params["reward"])
  assert value == 0 and gradient["bias"] == 4
  assert np.abs(gradient["weight"]).min() > 0


def test_an_untied_vocabulary_head_is_no_part_of_a_reward_model():
  cfg = helpers.tiny(num_layers=1, tied_head=False)
  assert "head" in params_lib.param_specs(cfg)
  specs = learned.param_specs(cfg)
  assert "head" not in specs and specs["reward"]["weight"].shape == (16,)


class TestSteps:
  @pytest.mark.parametrize(
    ("text", "steps"),
    [
      ("", [""]),
      ("a", ["a"]),
      ("a\n\nb", ["a\n\n", "b"]),
      ("a\n\nb\n\n", ["a\n\n", "b\n\n"]),
      ("a\n\n\n\nb", ["a\n\n\n\n", "b"]),
      ("\n\na\n\nb", ["\n\na\n\n", "b"]),
      ("a\n\n  \n\n \n", ["a\n\n  \n\n \n"]),
      ("\n\n \n\n", ["\n\n \n\n"]),
      ("a\nb", ["a\nb"]),
    ],
  )
  def test_cover_the_text_and_are_never_blank(self, text, steps):
    ends = learned.step_offsets(text, ["\n\n"])
    starts = [0, *ends[:-1]]
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == steps

  def test_end_at_whichever_separator_comes_first(self):
    text = "1 no wait 2 no 等3 ok"
    ends = learned.step_offsets(text, [" wait ", "等"])
    assert [text[:end] for end in ends] == [
      "1 no wait ",
      "1 no wait 2 no 等",
      text,
    ]

  def test_end_at_a_token_of_theirs(self):
    for problem, text in zip(PROBLEMS, COMPLETIONS, strict=True):
      row = learned.encode(PROCESS, TOKENIZER, problem, text)
      prompt = len(TOKENIZER.encode(problem.question + "\n")) + 1
      for end, offset in zip(row.ends, row.offsets, strict=True):
        assert TOKENIZER.decode(row.ids[prompt : end + 1]) == text[:offset]
      assert row.offsets[-1] == len(text)

  def test_a_flood_of_separators_costs_linear_time(self):
    assert len(learned.step_offsets("\n\n" * 10**5, ["\n\n"])) == 1
    assert len(learned.step_offsets("a\n\n" * 10**5, ["\n\n"])) == 10**5


def test_helpfulness_reads_the_final_answer_and_safety_everything():
  safe = OUTCOME
  helpful = learned.Reading("outcome", OUTCOME.template, reads="answer")
  thinking = "<think>How to do harm.</think> <answer>No.</answer>"
  problems, texts = PROBLEMS[:1] * 3, [thinking, "No.", "<think>a</think>No."]
  scores = learned.outcome(make_model(helpful), problems, texts).scores
  assert scores[0] == scores[1] == scores[2]
  scores = learned.outcome(make_model(safe), problems, texts).scores
  assert len({round(s, 4) for s in scores}) == 3
  row = learned.encode(helpful, TOKENIZER, PROBLEMS[0], thinking)
  assert TOKENIZER.decode(row.ids) == "Q: What is it?\nNo."
  assert row.ids[-1] == TOKENIZER.eos_ids[0]


def test_an_outcome_is_read_at_the_last_token_and_is_that_of_the_text_alone():
  found = learned.outcome(make_model(OUTCOME), PROBLEMS, COMPLETIONS)
  for problem, text, score in zip(
    PROBLEMS, COMPLETIONS, found.scores, strict=True
  ):
    ids = learned.encode(OUTCOME, TOKENIZER, problem, text).ids
    assert score == pytest.approx(slow_scalars(ids)[-1], abs=1e-5)


def test_steps_are_scored_by_what_stands_before_their_end():
  steps = learned.step_scores(make_model(PROCESS), PROBLEMS, COMPLETIONS)
  assert [len(s.scores) for s in steps] == [3, 1, 1, 4]
  for problem, text, found in zip(PROBLEMS, COMPLETIONS, steps, strict=True):
    row = learned.encode(PROCESS, TOKENIZER, problem, text)
    scalars = slow_scalars(row.ids)
    for end, score in zip(row.ends, found.scores, strict=True):
      want = 1 / (1 + math.exp(-scalars[end]))
      assert score == pytest.approx(want, abs=1e-5)
  # What comes after a step does not change its score.
  cut = learned.step_scores(
    make_model(PROCESS), PROBLEMS[:1], [COMPLETIONS[0][: steps[0].offsets[1]]]
  )[0]
  np.testing.assert_allclose(cut.scores, steps[0].scores[:2], atol=1e-5)


def test_aggregates_are_of_the_steps_probabilities():
  model = make_model(PROCESS)
  steps = learned.step_scores(model, PROBLEMS, COMPLETIONS)
  for name, slow in (
    ("min", np.min),
    ("mean", np.mean),
    ("product", np.prod),
    ("last", lambda scores: scores[-1]),
  ):
    found = learned.process(model, PROBLEMS, COMPLETIONS, aggregate=name)
    np.testing.assert_allclose(found.scores, [slow(s.scores) for s in steps])
    assert found.metrics["steps"] == [3, 1, 1, 4]
  with pytest.raises(ValueError, match="one of min, mean, last, product"):
    learned.process(model, PROBLEMS, COMPLETIONS, aggregate="max")


def layouts():
  eight = helpers.make_mesh(**helpers.EIGHT)
  yield "one row at a time", make_model(OUTCOME, rows_per_batch=1)
  yield "wider", make_model(OUTCOME, rows_per_batch=16, max_length=1024)
  yield "eight devices", make_model(OUTCOME, eight, rows_per_batch=4)
  yield "rows to fill up", make_model(OUTCOME, eight, rows_per_batch=8)


def test_scores_do_not_depend_on_batches_order_padding_or_devices():
  problems, texts = (
    PROBLEMS * 2,
    [*COMPLETIONS, *(c + "?" for c in COMPLETIONS)],
  )
  want = learned.outcome(make_model(OUTCOME), problems, texts).scores
  assert len({round(s, 3) for s in want}) == 8
  for name, model in layouts():
    found = learned.outcome(model, problems, texts).scores
    np.testing.assert_allclose(found, want, atol=1e-5, err_msg=name)
    found = learned.outcome(model, problems[::-1], texts[::-1]).scores
    np.testing.assert_allclose(found[::-1], want, atol=1e-5, err_msg=name)


def test_few_programs_serve_all_lengths():
  model = make_model(OUTCOME, max_length=200)
  learned._score.clear_cache()
  texts = ["a" * n for n in range(0, 190, 3)]
  learned.outcome(model, PROBLEMS[:1] * len(texts), texts)
  assert learned._score._cache_size() == 3  # 64, 128 and 200 wide.


def test_a_text_that_is_too_long_has_no_score():
  model = make_model(OUTCOME, max_length=80)
  found = learned.outcome(model, PROBLEMS, COMPLETIONS)
  assert [s is None for s in found.scores] == [False, False, False, True]
  assert found.metrics["too_long"] == [False, False, False, True]
  steps = learned.process(
    make_model(PROCESS, max_length=80), PROBLEMS, COMPLETIONS, aggregate="min"
  )
  assert steps.scores[3] is None and steps.metrics["steps"][3] is None


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    (dict(kind="both"), "outcome or process"),
    (dict(kind="process", reads="answer"), "reads the completion"),
    (dict(kind="outcome", reads="all"), "answer, completion"),
    (dict(kind="process", separators=("\n", "")), "not empty"),
    (dict(kind="process", separators="\n\n"), "a list of separators"),
    (dict(kind="process", probability=True), "anyway"),
    (dict(kind="outcome", template="Q:"), "with {question}"),
  ],
)
def test_a_reading_that_makes_no_sense_is_one_sentence(fields, says):
  with pytest.raises(ValueError) as error:
    learned.Reading(**fields)
  assert says in str(error.value)


def write_run(folder, params, cfg, reading=None):
  """A run's directory, as a stage leaves it."""
  TOKENIZER.save(folder / "tokenizer")
  if reading is None:
    directory.save_model(folder, cfg)
  else:
    saved.save(folder, cfg, reading)
  manager = ocp.CheckpointManager(folder / directory.CHECKPOINTS)
  manager.save(3, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
  manager.close()
  return str(folder)


class TestRewardsByName:
  def test_a_model_on_disk_scores_as_in_memory(self, tmp_path):
    sources = {}
    for reading in (OUTCOME, PROCESS):
      folder = tmp_path / reading.kind
      folder.mkdir()
      sources[reading.kind] = write_run(folder, make_params(), CFG, reading)
    options = dict(dtype="float32", rows_per_batch=4, max_length=256)
    section = dict(
      reward_model=dict(weight=1.0, source=sources["outcome"], **options),
      process_reward_model=dict(
        weight=0.5, source=sources["process"], aggregate="mean", **options
      ),
    )
    combine.check(section)
    mesh = helpers.make_mesh(**helpers.EIGHT)
    with jax.set_mesh(mesh):
      scores = combine.score(section, PROBLEMS, COMPLETIONS)
    want = learned.outcome(make_model(OUTCOME), PROBLEMS, COMPLETIONS).scores
    np.testing.assert_allclose(scores.terms["reward_model"], want, atol=1e-5)
    steps = learned.process(
      make_model(PROCESS), PROBLEMS, COMPLETIONS, aggregate="mean"
    ).scores
    np.testing.assert_allclose(
      scores.total, np.add(want, np.multiply(0.5, steps)), atol=1e-5
    )

  def test_what_is_no_reward_model_or_of_another_kind_is_told_before_a_run(
    self, tmp_path
  ):
    source = write_run(tmp_path, make_params(), CFG, PROCESS)
    none = str(tmp_path / "none")
    for name, options, says in (
      ("reward_model", dict(source=source), "of kind 'process'"),
      ("reward_model", dict(source=none), "No checkpoint of a model"),
      ("model_judge", dict(source=none), "No checkpoint of a model"),
      ("model_judge", dict(source=source, votes=0), "votes=0"),
      (
        "process_reward_model",
        dict(source=source, aggregate="max"),
        "one of min, mean, last, product",
      ),
    ):
      with pytest.raises(errors.ConfigError, match=says) as error:
        combine.check({name: dict(weight=1.0, **options)})
      assert str(error.value).startswith(f"config.rewards.{name}: ")
    combine.check(dict(process_reward_model=dict(weight=1.0, source=source)))
    (tmp_path / "reward_model.json").unlink()
    with pytest.raises(errors.ConfigError, match="no file reward_model.json"):
      combine.check(dict(reward_model=dict(weight=1.0, source=source)))
    with pytest.raises(ValueError, match="set_mesh"):
      reward_terms.outcome(PROBLEMS, COMPLETIONS, source=source)


class TestJudgeOfOurs:
  SAMPLING = decode.SamplingParams(max_new_tokens=6, temperature=1.0)
  # So many tokens end a reply that some are cut and others are not.
  TOKENIZER = tokenizer.ByteTokenizer()
  TOKENIZER.eos_ids = tuple(range(2, 80))

  def judge(self, mesh=None, prompts_per_batch=2, **changes):
    mesh = mesh or helpers.make_mesh()
    return judge_local.Judge(
      policy=generate.Policy(
        helpers.make_params(CFG, mesh), CFG, self.TOKENIZER, mesh
      ),
      template="{question}",
      sampling=self.SAMPLING,
      prompt_slots=24,
      prompts_per_batch=prompts_per_batch,
      **changes,
    )

  def test_replies_do_not_depend_on_batches_and_devices(self):
    prompts = ["one", "two", "x" * 24, "three", "four"]
    want = judge_local.ask(self.judge(), prompts, 2)
    assert [len(texts) for texts in want] == [2] * 5
    # 24 bytes and the beginning of a text are 25 tokens.
    assert want[2][0].text is None and "prompt_slots=24" in want[2][0].error
    eight = helpers.make_mesh(**helpers.EIGHT)
    assert judge_local.ask(self.judge(eight, 4), prompts, 2) == want
    assert judge_local.ask(self.judge(seed=1), prompts, 2) != want

  def test_a_reply_that_was_cut_is_none(self):
    replies = judge_local.ask(self.judge(), ["one", "two"], 8)
    flat = [reply for texts in replies for reply in texts]
    assert any("max_new_tokens" in reply.error for reply in flat)
    assert any(reply.text for reply in flat)
    assert all((r.text is None) == bool(r.error) for r in flat)

  def test_a_model_that_says_nothing_sensible_gives_no_score(self, tmp_path):
    source = write_run(tmp_path, helpers.make_params(CFG), CFG)
    section = dict(
      model_judge=dict(
        weight=1.0,
        source=source,
        votes=2,
        max_new_tokens=6,
        prompts_per_batch=2,
        dtype="float32",
      )
    )
    combine.check(section)
    with jax.set_mesh(helpers.make_mesh()):
      scores = combine.score(section, PROBLEMS[:2], ["It is 42.", "No."])
    assert not scores.valid.any()
    assert np.isnan(scores.terms["model_judge"]).all()
