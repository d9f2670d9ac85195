"""Reward models learn from pairs and labels, and are sources of rewards."""

import functools
import json
import signal

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grpo_jax import configs, sharding
from grpo_jax.data import preferences
from grpo_jax.data import rows as rows_lib
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import scoring
from grpo_jax.reward_models import batches, learned, saved
from grpo_jax.reward_models import evaluate as held_out
from grpo_jax.rewards import combine
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.runs.signals import Outcome
from grpo_jax.stages import reward_model
from grpo_jax.train import update

TOKENIZER = tokenizer.ByteTokenizer()
CFG = helpers.tiny(num_layers=1, d_model=32, head_dim=8, vocab_size=264)
READING = learned.Reading("outcome", template="{question}\n")


def run(config, workdir):
  """Runs the stage; returns whether it got to its end."""
  return reward_model.run(config, workdir) is Outcome.FINISHED


def make_pairs(count):
  """The preferred text says yes, somewhere among other letters."""
  rng = np.random.default_rng(0)
  for i in range(count):
    noise = ["".join(rng.choice(list("abcdef"), 6)) for _ in range(4)]
    chosen, rejected = f"{noise[0]}y{noise[1]}", f"{noise[2]}n{noise[3]}"
    yield dict(question=f"Is it {i}?", chosen=chosen, rejected=rejected)


def write(path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A policy's run, as a stage leaves it."""
  folder = tmp_path_factory.mktemp("policy")
  TOKENIZER.save(folder / "tokenizer")
  directory.save_model(folder, CFG)
  args = ocp.args.StandardSave(helpers.make_params(CFG))
  with ocp.CheckpointManager(folder / directory.CHECKPOINTS) as manager:
    manager.save(1, args=ocp.args.Composite(params=args))
  return str(folder)


def make_config(source, path, kind="bradley_terry", **changes):
  c = configs.reward_model()
  c.kind, c.source, c.data.path = kind, source, str(path)
  c.mesh = dict(data=-1)
  c.model = dict(dtype="float32", remat="none")
  c.prompts.template = "bare"
  c.reading.reads = "completion"
  c.max_length = 64
  c.batch.num_rows = 16
  c.epochs = 2
  c.optimizer.learning_rate = 3e-3
  c.evaluate.rows_per_batch = 16
  c.log_every = 1
  c.update(changes)
  return c


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
  """A finished Bradley-Terry model: its config and its directory."""
  folder = tmp_path_factory.mktemp("bradley_terry")
  path = write(folder / "pairs.jsonl", make_pairs(250))
  config = make_config(source, path, normalize=dict(unit_variance=True))
  assert run(config, folder / "run")
  return config, folder / "run"


def test_pairs_that_differ_by_a_letter_are_learned(trained):
  _, workdir = trained
  first, last = run_log.read(workdir / "evaluations.jsonl")
  assert first["step"] == 0 and first["accuracy"] == 0.5
  assert first["loss"] == pytest.approx(np.log(2))
  assert last["accuracy"] > 0.9 and last["loss"] < first["loss"]
  assert last["pairs"] == sum(
    preferences.split_of(f"Is it {i}?") == "test" for i in range(250)
  )


def test_a_finished_run_is_left_as_it_is(trained, capsys):
  config, workdir = trained
  before = (workdir / "metrics.jsonl").read_bytes()
  assert run(config, workdir)
  assert "already holds a finished reward model" in capsys.readouterr().out
  assert (workdir / "metrics.jsonl").read_bytes() == before


def load(workdir):
  mesh = helpers.make_mesh()
  cfg, params, reading = saved.load(workdir, mesh, dtype="float32")
  return learned.RewardModel(params, cfg, TOKENIZER, mesh, reading, 64, 16)


def test_rewards_have_mean_zero_and_unit_variance_over_the_reference(trained):
  config, workdir = trained
  pairs = preferences.pairs(config.data.path, "train")
  chosen, rejected = held_out.pair_scores(load(workdir), pairs)
  both = np.append(chosen, rejected)
  np.testing.assert_allclose([both.mean(), both.std()], [0, 1], atol=1e-4)


def test_a_saved_model_scores_pairs_as_the_run_said(trained):
  _, workdir = trained
  saved = json.loads((workdir / "reward_model.json").read_text())
  result = run_log.read(workdir / "evaluations.jsonl")[-1]
  pairs = preferences.pairs(trained[0].data.path, "test")
  chosen, rejected = held_out.pair_scores(load(workdir), pairs)
  margin = float(np.mean(chosen - rejected)) * saved["std"]
  assert margin == pytest.approx(result["margin"], rel=1e-4)
  section = dict(
    reward_model=dict(
      weight=1.0,
      source=str(workdir),
      max_length=64,
      rows_per_batch=16,
      dtype="float32",
    )
  )
  problems, texts = [p.problem for p in pairs], [p.chosen for p in pairs]
  with jax.set_mesh(helpers.make_mesh()):
    scores = combine.score(section, problems, texts)
  np.testing.assert_allclose(scores.total, chosen, rtol=1e-4, atol=1e-4)


def test_the_reliability_table_is_written_and_counts_every_pair(trained):
  _, workdir = trained
  found = json.loads((workdir / "reliability.json").read_text())
  result = run_log.read(workdir / "evaluations.jsonl")[-1]
  assert sum(found["counts"]) == result["pairs"]
  assert found["error"] == result["calibration_error"]


def test_an_unfinished_run_is_no_reward_model(source, tmp_path):
  directory.save_model(tmp_path, CFG)
  with pytest.raises(FileNotFoundError, match="when it is finished"):
    saved.load(tmp_path, helpers.make_mesh())


def test_single_labels_give_the_probability_that_a_text_is_good(
  source, tmp_path
):
  # A pair is two labelled texts, the chosen one good.
  path = write(tmp_path / "pairs.jsonl", make_pairs(150))
  config = make_config(source, path, "pointwise", epochs=3)
  assert run(config, tmp_path / "run")
  last = run_log.read(tmp_path / "run" / "evaluations.jsonl")[-1]
  assert last["accuracy"] > 0.9 and last["roc_auc"] > 0.95
  assert last["positive"] == last["majority"] == 0.5
  pairs = preferences.pairs(path, "test")
  chosen, rejected = held_out.pair_scores(load(tmp_path / "run"), pairs)
  assert ((0 < chosen) & (chosen < 1)).all() and (
    chosen > rejected
  ).mean() > 0.9


def test_labels_of_steps_give_the_probability_of_each_step(source, tmp_path):
  rng = np.random.default_rng(0)

  def trace(i):
    steps = rng.choice(["b yes", "d yes", "b no", "d no"], 3).tolist()
    labels = [float("yes" in step) for step in steps]
    return dict(
      question=f"Steps of {i}?", completion="; ".join(steps), labels=labels
    )

  path = write(tmp_path / "steps.jsonl", map(trace, range(150)))
  config = make_config(source, path, "process", epochs=4)
  config.reading.separators = ("; ",)
  assert run(config, tmp_path / "run")
  last = run_log.read(tmp_path / "run" / "evaluations.jsonl")[-1]
  assert last["accuracy"] > 0.9 and last["first_mistake"] > 0.8
  assert last["labels"] == 3 * last["texts"]


class TestLosses:
  ROWS = [
    dict(question="q", chosen="y" * (i + 1), rejected="n" * (9 - i), margin=i)
    for i in range(8)
  ]

  def batch(self, tmp_path, num_rows=8):
    path = write(tmp_path / "pairs.jsonl", self.ROWS)
    pairs = preferences.pairs(path, "train")
    rows = batches.encode_pairs(READING, TOKENIZER, pairs, 64)
    return rows, batches.collate_pairs(rows, num_rows, 64, 0)

  @staticmethod
  def params(mesh=None):
    body = helpers.make_params(CFG, mesh)
    params = learned.from_policy(body, CFG, mesh or helpers.make_mesh())
    head = {
      "weight": params["reward"]["weight"]
      + np.linspace(-1, 1, CFG.d_model, dtype=np.float32),
      "bias": params["reward"]["bias"],
    }
    return params | {"reward": head}

  @pytest.mark.parametrize("num_rows", [8, 11])
  def test_that_of_pairs_is_a_loop_in_float64(self, tmp_path, num_rows):
    rows, batch = self.batch(tmp_path, num_rows)
    params = self.params()
    loss, metrics = reward_model.pair_loss(
      params,
      jax.tree.map(jnp.asarray, batch),
      cfg=CFG,
      margin_coef=0.1,
      center_coef=0.01,
    )

    def score(ids):
      tokens = jnp.asarray([ids])
      positions = jnp.arange(len(ids))[None]
      scalars = scoring.score_scalars(
        params, CFG, params["reward"], tokens, positions, jnp.ones_like(tokens)
      )
      return np.float64(scalars[0, -1])

    want = []
    for row in rows:
      chosen, rejected = score(row.chosen.ids), score(row.rejected.ids)
      wanted = chosen - rejected - 0.1 * row.margin
      want.append(np.log1p(np.exp(-wanted)) + 0.01 * (chosen + rejected) ** 2)
    assert float(loss) == pytest.approx(np.mean(want), rel=1e-5)
    assert float(metrics["weight"]) == pytest.approx(1)

  def test_four_devices_and_microbatches_give_the_gradient_of_one(
    self, tmp_path
  ):
    _, batch = self.batch(tmp_path)
    loss = functools.partial(reward_model.pair_loss, cfg=CFG)
    found = {}
    for sizes in ({}, dict(data=2, fsdp=2)):
      mesh = helpers.make_mesh(**sizes)
      with jax.set_mesh(mesh):
        params = self.params(mesh)
        axes = sharding.split_rows(mesh, 4)[:1]
        placed = sharding.place(mesh, batch, axes)
        for pieces in (1, 2) if sizes else (1,):
          found[len(sizes), pieces] = jax.device_get(
            jax.jit(update.gradients, static_argnums=(0, 3))(
              loss, params, placed, pieces
            )
          )
    for tree in found.values():
      helpers.assert_trees_close(tree, found[0, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(kind="dpo"), "must be one of 'bradley_terry', 'pointwise'"),
    (dict(loss=dict(beta=1.0)), "no field 'beta'"),
    (dict(normalize=dict(reference="all")), "must be one of 'both', 'chosen'"),
    (
      dict(kind="process", reading=dict(reads="answer")),
      "reads the completion",
    ),
    (dict(data=dict(path="runs/r1_preferences/dataset")), "r1_preferences.py"),
    (dict(source="runs/r1_sft"), "No model in"),
    (dict(kind="process"), "do the separators"),
    (dict(max_length=8), "nothing to train on"),
  ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(
  source, tmp_path, changes, says
):
  rows = [dict(r, label=1.0, completion="a\n\nb") for r in make_pairs(60)]
  if changes.get("kind") == "process":
    rows = [
      dict(question=r["question"], completion=r["completion"], label=1.0)
      for r in rows
    ]
  path = write(tmp_path / "rows.jsonl", rows)
  config = make_config(source, path)
  with config.unlocked():
    config.update(changes)
  with pytest.raises((ValueError, OSError), match=says):
    run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_stopped_run_goes_on_to_the_same_model(
  trained, tmp_path, monkeypatch
):
  config, workdir = trained
  batch_of = rows_lib.Batches.__call__

  def stop(batches, step):
    if step == 5:
      signal.raise_signal(signal.SIGTERM)
    return batch_of(batches, step)

  with monkeypatch.context() as patch:
    patch.setattr(rows_lib.Batches, "__call__", stop)
    assert not run(config, tmp_path / "run")
  assert not saved.is_saved(tmp_path / "run")
  assert run(config, tmp_path / "run")
  assert run_log.history(tmp_path / "run") == run_log.history(workdir)
  for name in ("reward_model.json", "reliability.json", "evaluations.jsonl"):
    assert (tmp_path / "run" / name).read_bytes() == (
      workdir / name
    ).read_bytes()
