"""The loss of the rl stage, and configs that it refuses.

P prompts, G completions each, N completion slots.
"""

import copy
import functools
import importlib.util
import pathlib

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import configs, types
from grpo_jax.losses import policy
from grpo_jax.models import scoring
from grpo_jax.reward_models import learned, saved
from grpo_jax.rl import experience, programs
from grpo_jax.sampling import decode
from grpo_jax.stages import rl, rl_checks
from grpo_jax.train import update

CFG = helpers.tiny(num_layers=1)
TEMPERATURE = 0.7
EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def loss_fn(params, batch, **terms):
  return programs.loss_fn(
    params,
    batch,
    cfg=CFG,
    temperature=TEMPERATURE,
    policy_loss=functools.partial(policy.grpo_loss, **terms),
  )


@pytest.fixture(scope="module")
def params():
  return helpers.make_params(CFG)


@pytest.fixture(scope="module")
def rollout(params):
  return jax.device_get(
    decode.sample(
      params,
      CFG,
      jax.tree.map(jnp.asarray, helpers.make_prompts([3, 7, 1, 5], 7)),
      jax.random.key(0),
      sampling=decode.SamplingParams(
        group_size=4, max_new_tokens=12, temperature=TEMPERATURE
      ),
      eos_ids=(1, 5),
    )
  )


def score(params, rollout):
  given = rollout.prompts, rollout.tokens, rollout.completion_mask
  return jax.device_get(
    programs.make_score(CFG, TEMPERATURE, 1)(
      params, *jax.tree.map(jnp.asarray, given)
    ).logprobs
  )


@pytest.fixture(scope="module")
def batch(params, rollout):
  """The experience of one update, with the policy itself as the reference."""
  rewards = np.random.default_rng(0).random(16, np.float32)
  scores = types.Rewards(rewards, np.ones(16, bool), {})
  old = score(params, rollout)
  data = experience.make_experience(
    helpers.earning(rollout, scores),
    experience.Scored(old, np.zeros_like(old), old),
  )
  (part,) = experience.minibatches(data, 1, "sequence_mean", 12)
  return jax.tree.map(jnp.asarray, part)


def test_sampler_and_scorer_agree_at_the_sampling_temperature(batch):
  mask = np.asarray(batch.completion_mask)
  gap = np.abs(batch.old_logprobs - batch.sampler_logprobs)[mask]
  assert 0 < mask.sum() < mask.size
  assert gap.max() < 1e-5


def test_in_the_first_update_every_single_ratio_is_one(params, batch):
  """As the program that takes the gradient computes it, not a forward pass."""

  def watched(params, batch):
    stats = scoring.score_completions(
      params,
      CFG,
      batch.prompts.tokens,
      batch.prompts.mask,
      batch.tokens,
      batch.completion_mask,
      temperature=TEMPERATURE,
    )
    loss, metrics = policy.grpo_loss(
      stats.logprobs,
      batch.old_logprobs,
      batch.ref_logprobs,
      batch.advantages,
      batch.weights,
    )
    log_ratio = jnp.where(
      batch.completion_mask, stats.logprobs - batch.old_logprobs, 0.0
    )
    return loss, metrics | {"off": jnp.max(jnp.abs(jnp.expm1(log_ratio)))}

  _, metrics, _ = jax.jit(
    lambda params, batch: update.gradients(watched, params, batch, 1)
  )(params, batch)
  # Weights sum to 1 to rounding, and the mean ratio to what they sum to.
  assert abs(float(metrics["ratio/mean"] - metrics["weight"])) < 1e-6
  assert float(metrics["off"]) < 1e-5


def test_the_first_gradient_is_that_of_advantage_times_log_prob(params, batch):
  def plain(params):
    stats = scoring.score_completions(
      params,
      CFG,
      batch.prompts.tokens,
      batch.prompts.mask,
      batch.tokens,
      batch.completion_mask,
      temperature=TEMPERATURE,
    )
    share = batch.weights * batch.advantages
    return -jnp.sum(jnp.where(batch.completion_mask, share * stats.logprobs, 0))

  want = jax.jit(jax.grad(plain))(params)
  got = jax.jit(jax.grad(lambda p: loss_fn(p, batch)[0]))(params)
  helpers.assert_trees_close(got, want, rtol=1e-4, atol=1e-6)
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want)) > 1e-3


def test_after_a_refresh_the_kl_to_the_reference_is_zero(params, batch):
  loss = jax.jit(functools.partial(loss_fn, kl_coef=1.0))
  _, metrics = loss(params, batch)
  assert abs(float(metrics["kl"])) < 1e-8
  _, elsewhere = loss(helpers.make_params(CFG, seed=1), batch)
  assert float(elsewhere["kl"]) > 0.1


def test_what_stands_in_padding_changes_nothing(params, batch):
  mask = batch.completion_mask
  prompts = batch.prompts
  other = batch.replace(
    tokens=jnp.where(mask, batch.tokens, 3),
    old_logprobs=jnp.where(mask, batch.old_logprobs, jnp.nan),
    ref_logprobs=jnp.where(mask, batch.ref_logprobs, jnp.nan),
    prompts=prompts.replace(tokens=jnp.where(prompts.mask, prompts.tokens, 9)),
  )
  gradient = jax.jit(
    jax.value_and_grad(lambda p, b: loss_fn(p, b, kl_coef=0.1)[0])
  )
  helpers.assert_trees_close(
    gradient(params, other), gradient(params, batch), rtol=0, atol=0
  )


# What the stage refuses, before anything is made.


def openrlhf(queries, prompts, labels):
  return [0.0] * len(queries)


def with_changes(config, changes):
  with config.unlocked():
    for name, value in changes.items():
      *path, field = name.split(".")
      section = config
      for part in path:
        section = section[part]
      section[field] = copy.deepcopy(value)
  return config


def experiment(name: str, arg: str | None = None):
  path = EXPERIMENTS / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


@pytest.mark.parametrize("arg", [None, "smoke", "gsm8k", "gsm8k,smoke"])
def test_the_experiments_of_this_machine_can_be_run(arg):
  rl_checks.check(experiment("r1_zero", arg))


@pytest.mark.parametrize(
  "arg", ["qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-32b", "qwen2.5-7b,smoke"]
)
def test_the_papers_experiments_can_be_run_given_a_base(arg, tmp_path):
  (tmp_path / "checkpoints").mkdir()
  rl_checks.check(experiment("r1_zero", f"{arg},base={tmp_path}"))


@pytest.mark.parametrize("arg", [None, "smoke", "gae_lambda=0.95"])
def test_ppo_can_be_run(arg):
  rl_checks.check(experiment("ppo", arg))


@pytest.fixture
def runs(tmp_path):
  """A directory with all that stages of the recipe read."""
  for model in ("", "-qwen2.5-7b"):
    comma = model.replace("-", ",", 1)
    for name in ("r1_cold_start", "r1_sft", "reward_model", "base"):
      (tmp_path / f"{name}{model}" / "checkpoints").mkdir(parents=True)
    safety = tmp_path / f"reward_model-safety{comma}"
    (safety / "checkpoints").mkdir(parents=True)
    for path in (tmp_path / f"reward_model{model}", safety):
      saved.save(path, CFG, learned.Reading(kind="outcome"))
  return tmp_path


@pytest.mark.parametrize(
  "name, arg",
  [
    ("ppo", "base={}/base"),
    ("ppo", "qwen2.5-7b,base={}/base"),
    ("r1_rl", "runs={}"),
    ("r1_rl", "no_language,runs={}"),
    ("r1_rl", "qwen2.5-7b,runs={}"),
    ("r1_rlhf", "runs={}"),
    ("r1_rlhf", "smoke,runs={}"),
    ("r1_rlhf", "qwen2.5-7b,runs={}"),
  ],
)
def test_stages_can_be_run_given_their_sources(name, arg, runs):
  rl_checks.check(experiment(name, arg.format(runs)))


@pytest.mark.parametrize(
  "changes",
  [
    {"loss.dual_clip": 3.0, "loss.kl_estimator": "k2"},
    {"sampling.top_p": 1.0, "sampling.top_k": 0},
    {"evaluate.sampling.min_p": 0.1},
    {"advantages.ddof": 0, "optimizer.b2": 0.99},
    {"pretrain.model.qkv_bias": True, "pretrain.optimizer.b1": 0.8},
  ],
  ids=str,
)
def test_any_argument_of_what_a_section_feeds_is_a_field(changes):
  rl_checks.check(with_changes(experiment("r1_zero"), changes))


VALUE = configs.value()


def test_a_schedule_changes_how_completions_are_drawn():
  c = with_changes(
    experiment("r1_zero"),
    {"schedule": {5: dict(max_new_tokens=99), 9: dict(temperature=0.7)}},
  )
  rl_checks.check(c)
  drawn = [rl_checks.sampling_at(c, update) for update in (0, 4, 5, 8, 9, 30)]
  assert [s.max_new_tokens for s in drawn] == [88, 88, 99, 99, 99, 99]
  assert [s.temperature for s in drawn] == [1, 1, 1, 1, 0.7, 0.7]
  assert {s.group_size for s in drawn} == {8}


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"sampling.group_size": 1}, "group_size=1 must be at least 2"),
    ({"sampling.top_p": 0.9}, "must draw from the whole vocabulary"),
    ({"sampling.temperature": 0.0}, "must draw from the whole vocabulary"),
    ({"sampling.temperature": -1.0}, "temperature=-1.0 must not be negative"),
    (
      {"prompts.num_prompts": 30, "batching.num_microbatches": 4},
      r"num_prompts=30 must divide by .* 2 x 4\.$",
    ),
    ({"rewards.acuracy": 1.0}, "no reward 'acuracy'; did you mean 'accuracy'"),
    ({"rewards.format": float("nan")}, "'format' must be a finite number"),
    ({"loss.kl_cof": 0.1}, r"config\.loss has no field 'kl_cof'; .* 'kl_coef'"),
    ({"sampling.topp": 1.0}, "config.sampling has no field 'topp'; .*top_p"),
    ({"advantages.ddoff": 0}, "has no field 'ddoff'; did you mean 'ddof'"),
    ({"total_stepz": 3}, "has no field 'total_stepz'; did you mean 'total_st"),
    ({"weighting": "tokenmean"}, "tokenmean.* 'token_mean'"),
    ({"objective": "grop"}, "grop.* 'grpo'"),
    ({"optimizer.schedule": "sine"}, "schedule='sine' must be one of"),
    ({"lora.rank": -1}, r"lora.rank=-1 must not be negative\.$"),
    ({"lora.rnk": 4}, "config.lora has no field 'rnk'; did you mean 'rank'"),
    ({"lora.targets": ("q_prj",)}, "lora.targets has 'q_prj'; .* 'q_proj'"),
    (
      {"lora.rank": 4, "router_bias_rate": 1e-3},
      "router_bias_rate=0.001 moves the router of a .* config.lora.rank",
    ),
    (
      {"schedule": {5: dict(temprature=1.0)}},
      "schedule.5 has .* 'temperature'",
    ),
    ({"schedule": {5: dict(temperature=0.0)}}, "from the whole vocabulary"),
    (
      {"schedule": {5: dict(group_size=4)}},
      "schedule.5 has no field 'group_",
    ),
    ({"schedule": {"5": dict()}}, "schedule has '5', which is no number of st"),
    ({"from_step": dict(chat=-1)}, r"from_step\.chat=-1 must be a number"),
    ({"curriculum": dict(shar=1)}, "config.curriculum .* mean 'share'"),
    ({"curriculum": dict(share=0.0)}, r"share=0.0 must be in \(0, 1\]"),
    ({"curriculum": dict(term="acc")}, "term='acc' is no reward of this"),
    (
      {"dynamic_sampling": dict(round=1)},
      "dynamic_sampling has no field 'ro",
    ),
    ({"dynamic_sampling": dict(max_rounds=0)}, "max_rounds=0 must be at least"),
    (
      {"dynamic_sampling": dict(term="cosine")},
      "'cosine' is no reward of",
    ),
    ({"value": VALUE}, "advantages.kind='group' reads no values: .* \"gae\""),
    ({"advantages.kind": "gae"}, "config.advantages has no field 'scale'"),
    ({"advantages": dict(kind="gae")}, 'kind="gae" reads the values of a mod'),
    (
      {"value": VALUE, "advantages": dict(lambda_=2.0)},
      "advantages.lambda_=2.0 must be in",
    ),
    (
      {"value": VALUE, "advantages": dict(), "value.loss.clip": 0.0},
      "value.loss.clip=0.0 must be positive",
    ),
    (
      {"value": VALUE, "advantages": dict(), "value.loss.clp": 1.0},
      "config.value.loss has no field 'clp'",
    ),
    ({"value": dict(sauce="")}, "config.value has no field 'sauce'"),
    (
      {
        "value": VALUE,
        "advantages": dict(),
        "sampling.group_size": 1,
        "dynamic_sampling": dict(),
      },
      "group_size=1 must be at least 2",
    ),
    ({"optimizer.learning_rate": -1.0}, "config.optimizer.learning_rate=-1.0"),
    (
      {"value": VALUE, "value.optimizer.learning_rate": float("nan")},
      "config.value.optimizer.learning_rate=nan must be above 0 and finite",
    ),
    (
      {"pretrain.optimizer.learning_rate": 0.0},
      "optimizer.learning_rate=0.0 must be above 0",
    ),
    ({"total_steps": 0}, "config.total_steps=0 must be a whole number of at"),
    ({"pretrain.total_steps": 0}, "config.total_steps=0 must be a whole"),
    ({"checkpoint.every": 0}, "config.checkpoint.every=0 must be"),
    ({"batching.num_minibatches": 0}, "config.batching.num_minibatches=0"),
    ({"health.patience": 0}, "config.health.patience=0 must be at least 1"),
    (
      {"rewards.mine": dict(weight=1, function=f"{__name__}:openrlhf")},
      r"config.rewards.mine: openrlhf\(queries, prompts, labels\) is no reward",
    ),
    ({"optimizer.warmup_updates": 99}, "warmup_updates=99 must be below .* 64"),
    (
      {"pretrain.batch.num_rows": 31, "pretrain.batch.num_microbatches": 2},
      "num_rows=31 must divide by num_microbatches=2",
    ),
    ({"pretrain.model.num_heads": 3}, "num_heads=3 must divide by"),
    ({"pretrain.model.d_modle": 3}, "no field 'd_modle'; did you .* 'd_model'"),
  ],
  ids=str,
)
def test_bad_input_is_refused_in_one_sentence(changes, sentence, tmp_path):
  config = with_changes(experiment("r1_zero"), changes)
  workdir = tmp_path / "run"
  with pytest.raises(ValueError, match=sentence) as caught:
    rl.run(config, workdir)
  assert "\n" not in str(caught.value)
  assert not workdir.exists()


def test_a_missing_base_says_which_command_makes_it(tmp_path):
  source = tmp_path / "base"
  config = experiment("r1_zero", f"base={source}")
  with pytest.raises(FileNotFoundError) as caught:
    rl.run(config, tmp_path / "run")
  assert "python -m grpo_jax.main --config=experiments/pretrain.py" in str(
    caught.value
  )
  assert f"--workdir={source}" in str(caught.value)
  assert not (tmp_path / "run").exists()
