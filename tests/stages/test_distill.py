"""The distill stage: its losses, its data, and runs of it.

P prompts, G completions each, B rows of text, T positions.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import signal

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_resume

from grpo_jax import configs, sharding
from grpo_jax.data import records
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import scoring, transformer
from grpo_jax.rl import experience
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.runs import source as source_lib
from grpo_jax.stages import chain, distill, sft
from grpo_jax.train import checkpoint, optimizer
from grpo_jax.train import state as state_lib
from grpo_jax.train.update import gradients
from grpo_jax.types import Rollout, TextBatch

# A policy of another family than its teacher, over a vocabulary padded less.
POLICY = helpers.tiny(num_layers=1, qk_norm=False, tied_head=False)
TEACHER = helpers.tiny(num_layers=2, d_model=24, d_ff=40, vocab_size=40)
KINDS = ("forward_kl", "reverse_kl", "js")


def packed(rows: int = 8, length: int = 12, vocab_size: int = 32) -> TextBatch:
  """Two documents a row and some padding; half of the tokens count."""
  rng = np.random.default_rng(0)
  segments = np.repeat([1, 2, 0], [5, 5, 2])[None].repeat(rows, axis=0)
  positions = np.concatenate([np.arange(5), np.arange(5), np.zeros(2, int)])
  chosen = (positions > 1) & (segments > 0) & (rng.random((rows, length)) < 0.6)
  return TextBatch(
    tokens=rng.integers(0, vocab_size, (rows, length), np.int32),
    segments=segments.astype(np.int32),
    positions=positions[None].repeat(rows, axis=0).astype(np.int32),
    weights=(chosen / chosen.sum()).astype(np.float32),
  )


def on_device(batch):
  return jax.tree.map(jnp.asarray, batch)


def softmax(logits):
  p = np.exp(logits - logits.max())
  return p / p.sum()


def kl(p, q):
  return float(np.sum(p * (np.log(p) - np.log(q))))


def logits_64(params, cfg, batch):
  """Logits of a model in float64, [B, T, V], from its hidden states."""
  text = batch.tokens, batch.positions, batch.segments
  hidden = jax.jit(functools.partial(transformer.forward, cfg=cfg))(
    params, tokens=text[0], positions=text[1], segments=text[2]
  )[0]
  head = params["embed"].T if cfg.tied_head else params["head"]
  return np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_a_loop_over_all_logits(kind):
  params, teacher = helpers.make_params(POLICY), helpers.make_params(TEACHER)
  batch = on_device(packed())
  loss, metrics = jax.jit(
    functools.partial(
      distill.divergence_loss,
      cfg=POLICY,
      teacher_cfg=TEACHER,
      kind=kind,
      beta=0.3,
      temperature=1.5,
    )
  )(params, batch, teacher)
  ours, theirs = (
    logits_64(tree, cfg, batch)[..., :32] / 1.5
    for tree, cfg in ((params, POLICY), (teacher, TEACHER))
  )
  expected = 0.0
  for b, t in zip(*np.nonzero(np.asarray(batch.weights)), strict=True):
    q, p = softmax(ours[b, t - 1]), softmax(theirs[b, t - 1])
    m = 0.3 * p + 0.7 * q
    value = {
      "forward_kl": lambda p=p, q=q: kl(p, q),
      "reverse_kl": lambda p=p, q=q: kl(q, p),
      "js": lambda p=p, q=q, m=m: 0.3 * kl(p, m) + 0.7 * kl(q, m),
    }[kind]()
    expected += float(batch.weights[b, t]) * value
  np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
  assert float(metrics["divergence"]) == float(loss) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_is_its_teacher_has_no_divergence_and_stays(kind):
  params = helpers.make_params(POLICY)
  loss = functools.partial(
    distill.divergence_loss, cfg=POLICY, teacher_cfg=POLICY, kind=kind
  )
  value, _, gradient = jax.jit(gradients, static_argnums=(0, 3))(
    loss, params, on_device(packed()), 1, params
  )
  assert abs(float(value)) < 1e-6
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) < 1e-6


def test_advantages_of_a_policy_that_is_its_teacher_are_zero():
  params = helpers.make_params(POLICY)
  loss = functools.partial(
    distill.advantage_loss, cfg=POLICY, teacher_cfg=POLICY
  )
  _, metrics, gradient = jax.jit(gradients, static_argnums=(0, 3))(
    loss, params, on_device(packed()), 1, params
  )
  assert float(metrics["divergence"]) == 0
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) == 0


def test_one_token_advantages_have_the_reverse_kls_gradient_in_expectation():
  """Over all completions of two tokens, each with its probability."""
  size = 5
  policy, teacher = (
    helpers.tiny(vocab_size=size, num_layers=n) for n in (1, 2)
  )
  params, wanted = helpers.make_params(policy), helpers.make_params(teacher)
  tokens = np.array(
    [(3, 1, *drawn) for drawn in itertools.product(range(size), repeat=2)]
  ).astype(np.int32)
  chosen = np.arange(4)[None] > 1
  batch = on_device(
    TextBatch(
      tokens=tokens,
      segments=np.ones_like(tokens),
      positions=np.arange(4, dtype=np.int32)[None].repeat(len(tokens), axis=0),
      weights=(np.ones(tokens.shape) * chosen).astype(np.float32),
    )
  )
  scores = scoring.score_text(
    params, policy, batch.tokens, batch.positions, batch.segments
  )
  chance = jnp.exp(jnp.sum(scores.logprobs * chosen, axis=-1, keepdims=True))
  np.testing.assert_allclose(float(chance.sum()), 1.0, rtol=1e-5)
  batch = batch.replace(weights=batch.weights * chance)
  models = dict(cfg=policy, teacher_cfg=teacher)
  found = [
    jax.jit(gradients, static_argnums=(0, 3))(loss, params, batch, 1, wanted)
    for loss in (
      functools.partial(distill.advantage_loss, **models),
      functools.partial(distill.divergence_loss, **models, kind="reverse_kl"),
    )
  ]
  (_, of_tokens, sampled), (_, of_all, exact) = found
  helpers.assert_trees_close(sampled, exact, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    float(of_tokens["divergence"]), float(of_all["divergence"]), rtol=1e-4
  )
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(exact)) > 1e-3


def test_microbatches_and_devices_give_one_loss_and_one_gradient():
  loss = functools.partial(
    distill.divergence_loss, cfg=POLICY, teacher_cfg=TEACHER, kind="js"
  )
  found = []
  for sizes, pieces in (({}, 1), ({}, 4), (helpers.EIGHT, 4)):
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      params = helpers.make_params(POLICY, mesh)
      teacher = helpers.make_params(TEACHER, mesh)
      rows = sharding.split_rows(mesh, 16 // pieces)[:1]
      value, _, gradient = jax.jit(gradients, static_argnums=(0, 3))(
        loss, params, sharding.place(mesh, packed(16), rows), pieces, teacher
      )
      found.append(sharding.to_host((value, gradient)))
  for tree in found[1:]:
    helpers.assert_trees_close(tree, found[0], rtol=2e-4, atol=2e-6)


def test_a_rollout_as_text_scores_as_the_rollout_does():
  prompts = helpers.make_prompts([3, 7, 1], 7)
  tokens, mask = helpers.make_completions([[4, 6], [1, 6], [6, 3]], 6)
  rollout = Rollout(prompts, tokens, mask, np.zeros(mask.shape), mask[..., 0])
  text = experience.as_text(rollout)
  params = helpers.make_params(TEACHER)
  given = (prompts.tokens, prompts.mask, tokens, mask)
  expected = jax.jit(scoring.score_completions, static_argnums=1)(
    params, TEACHER, *on_device(given)
  ).logprobs
  given = (text.tokens, text.positions, text.segments)
  found = jax.jit(scoring.score_text, static_argnums=1)(
    params, TEACHER, *on_device(given)
  ).logprobs
  found = np.asarray(found)[:, 7:].reshape(mask.shape)
  np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
  np.testing.assert_allclose(
    text.weights, np.pad(mask.reshape(6, 6), ((0, 0), (7, 0))) / mask.sum()
  )


# Runs.

CONFIG = """
import json, pathlib
from ml_collections import ConfigDict

def get_config():
  return ConfigDict(json.loads(pathlib.Path({path!r}).read_text()))
"""


def make_run(workdir, cfg, tok, seed=0):
  """What a run leaves of its model."""
  directory.claim(workdir, {"seed": seed})
  tok.save(workdir / "tokenizer")
  cfg = dataclasses.replace(cfg, vocab_size=cfg.vocab_size + 256)
  directory.save_model(workdir, cfg)
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    params = helpers.make_params(cfg, mesh, seed)
    tx, _ = optimizer.make_optimizer(1, learning_rate=0.1)
    checkpointer = checkpoint.Checkpointer(workdir)
    checkpointer.save(1, state_lib.init_state(params, tx))
    checkpointer.close()
  return str(workdir)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  """A policy, a teacher, one with another tokenizer, and a dataset."""
  folder = tmp_path_factory.mktemp("sources")
  tok = tokenizer.ByteTokenizer()
  rows = [
    {
      "messages": [
        {"role": "user", "content": f"{i}+{i}=?"},
        {"role": "assistant", "content": str(2 * i)},
      ]
    }
    for i in range(24)
  ]
  records.write(folder / "dataset", rows, {"stage": "rejection"})
  other = tokenizer.ByteTokenizer(["<think>"])
  return {
    "policy": make_run(folder / "policy", POLICY, tok),
    "teacher": make_run(folder / "teacher", TEACHER, tok, seed=1),
    "other": make_run(folder / "other", TEACHER, other),
    "dataset": str(folder / "dataset"),
    "data_dir": str(tmp_path_factory.mktemp("data")),
  }


def make_config(sources, **changes):
  c = configs.distill()
  c.data_dir = sources["data_dir"]
  c.source, c.teacher = sources["policy"], sources["teacher"]
  c.data.path = sources["dataset"]
  c.model = dict(dtype="float32", remat="none", head_chunk=64)
  c.batch = dict(
    num_rows=4, row_length=64, num_microbatches=1, length_multiple=8
  )
  c.prompts.update(template="plain", num_prompts=2, prompt_slots=32)
  c.prompts.data = dict(name="addition", split="train", train_size=16)
  c.sampling.update(group_size=2, max_new_tokens=8, cache_chunk=8)
  c.optimizer.learning_rate = 1e-2
  c.log_every, c.checkpoint.every = 1, 4
  c.update_from_flattened_dict(changes)
  return c


def write_config(folder, config):
  content, file = folder / "config.json", folder / "config.py"
  content.write_text(json.dumps(config.to_dict()))
  file.write_text(CONFIG.format(path=str(content)))
  return str(file)


def parameters(workdir):
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    _, params, step = source_lib.load_policy(workdir, mesh)
  return jax.device_get(params), step


def test_a_run_goes_on_where_it_was_killed(sources, tmp_path, monkeypatch):
  """Half of the steps on the dataset, half on the policy's own text."""
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  config = make_config(sources, on_policy_share=0.5, total_steps=16)
  file, whole, run = (
    write_config(tmp_path, config),
    tmp_path / "whole",
    tmp_path / "run",
  )
  test_resume.run(file, whole)
  assert test_resume.stop(signal.SIGKILL, 7, file, run) == -signal.SIGKILL
  assert test_resume.last_step(run) < 16
  assert "Going on after step" in test_resume.run(file, run)
  history = run_log.history(whole)
  assert run_log.history(run) == history
  params, step = parameters(whole)
  assert step == 16
  jax.tree.map(np.testing.assert_array_equal, parameters(run)[0], params)
  # Rows of data are packed, those of two prompts and 40 positions are not.
  assert len({row["num_tokens"] > 4 * 40 for row in history}) == 2
  divergence = [row["divergence"] for row in history]
  assert np.mean(divergence[-5:]) < 0.8 * np.mean(divergence[:5])


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"objective": "kl"}, "objective='kl' must be one of .*'advantage'"),
    ({"divergence.kind": "tv"}, "kind='tv' must be one of"),
    ({"divergence.kind": "js", "divergence.beta": 1.0}, "beta=1.0 must be bet"),
    ({"divergence.temprature": 1.0}, "no field 'temprature'; did you mean"),
    ({"on_policy_share": 1.5}, r"on_policy_share=1.5 must be in \[0, 1\]"),
    ({"on_policy_share": 1.0}, "total_steps=0 must say how many"),
    ({"objective": "advantage"}, "it needs on_policy_share=1 and a sampling"),
    (
      {
        "objective": "advantage",
        "on_policy_share": 1.0,
        "total_steps": 1,
        "sampling.temperature": 0.7,
      },
      "a sampling of temperature 1 from the whole vocabulary",
    ),
    ({"batch.num_microbatches": 3}, "batch, 4, must divide by .*batches=3"),
    (
      {
        "on_policy_share": 0.5,
        "prompts.num_prompts": 3,
        "batch.num_microbatches": 4,
      },
      "batch, 6, must divide by config.batch.num_microbatches=4",
    ),
  ],
  ids=str,
)
def test_what_cannot_be_run_is_refused(changes, sentence, sources):
  with pytest.raises(ValueError, match=sentence):
    distill.check(make_config(sources, **changes))


def test_what_is_not_there_is_named_with_what_makes_it(sources):
  for field in ("source", "teacher"):
    config = make_config(sources, **{field: "runs/pretrain"})
    with pytest.raises(
      FileNotFoundError,
      match=f"experiments/pretrain.py` first, .*config.{field}=DIRECTORY",
    ):
      distill.check(config)


def experiment(arg):
  beside = pathlib.Path(__file__).parents[2] / "experiments" / "r1_distill.py"
  return configs.experiment(beside, "r1_distill", arg)


@pytest.mark.parametrize(
  "model, learning_rate", [("qwen2.5-math-1.5b", 1e-4), ("qwen2.5-32b", 6e-5)]
)
@pytest.mark.parametrize("word", ["", ",on_policy"])
def test_real_models_have_the_papers_settings(
  model, learning_rate, word, sources
):
  c = experiment(
    f"{model}{word},base={sources['policy']},teacher={sources['teacher']}"
  )
  distill.check(c)
  assert c.on_policy_share == (0.5 if word else 0.0)
  by_text = experiment(f"{model},base={sources['policy']}")
  sft.check(by_text)
  for each in (c, by_text):
    assert each.optimizer.learning_rate == learning_rate
    assert (each.batch.num_rows, each.batch.row_length) == (64, 32_768)


@pytest.mark.parametrize("arg", ["", "smoke", "runs={workdir}/.."])
def test_the_five_ways_are_a_chain_that_can_be_run(arg):
  c = experiment(arg)
  chain.check(c)
  evaluated = [where for _, where in c.table.rows]
  assert c.order[: len(c.order) - len(evaluated)] == (
    *("base", "sft", "rl", "sft_rl", "off_policy", "on_policy"),
  )
  assert list(c.order[-len(evaluated) :]) == evaluated


def test_another_tokenizer_is_refused_and_told_apart(sources):
  config = make_config(sources, teacher=sources["other"])
  with pytest.raises(
    ValueError,
    match="one vocabulary, but the policy has 259 ids and not 260 as the",
  ):
    distill.check(config)
