"""Every name of every table runs two steps, chosen as a user types it."""

import json

import helpers
import orbax.checkpoint as ocp
import pytest

from grpo_jax import configs, schema, stages
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.losses import distill, kl, preference, weighting
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.runs.signals import Outcome

CFG = helpers.tiny(num_layers=1, vocab_size=264)
RL = stages.load("rl").SCHEMA
# Values of options without a default, and what a name needs besides.
NEEDED = {"k": 2, "ratio_min": 0.5, "ratio_max": 2.0}
BESIDES = {
  "gae": ["config.value=on"],
  "k1": ["config.loss.kl_off_policy=True"],
}
CHOSEN = [
  (choice.by, choice.name, choice.section, choice.options)
  for choice in configs.fields.choices(RL)
  if not choice.by.endswith("data.name")
]
CHOSEN += [("weighting", name, "", {}) for name in weighting.WEIGHTINGS]
CHOSEN += [("loss.kl_estimator", name, "", {}) for name in kl.ESTIMATORS]
OTHERS = {
  "adapt_kl": ["config.adapt_kl.target=0.01"],
  "adapt_entropy": ["config.adapt_entropy.target=9.0"],
  "dynamic_sampling": [
    "config.dynamic_sampling.max_rounds=2",
    "config.dynamic_sampling.term=mine",
  ],
  "curriculum": ["config.curriculum.share=0.5", "config.curriculum.term=mine"],
  "entropy bonus": ["config.loss.entropy_coef=0.01"],
  "stale rows": ["config.loss.stale_threshold=0.5"],
  "drift": ["config.loss.drift_coef=0.01"],
}


def fields_of(by, name, section, options):
  fields = [f"config.{by}={name}", *BESIDES.get(name, [])]
  for option, about in options.items():
    if about.default is schema.REQUIRED:
      fields.append(f"config.{section}.{option}={NEEDED[option]}")
  return fields


CASES = {f"{by}={name}": fields_of(by, name, *x) for by, name, *x in CHOSEN}
CASES |= OTHERS
TABLES = {
  ("distill", "divergence.kind"): distill.DIVERGENCES,
  ("preference", "loss.kind"): preference.PREFERENCES,
}
OF_TEXTS = [
  (stage, f"config.{by}={name}")
  for (stage, by), table in TABLES.items()
  for name in table
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A policy's run, as a stage leaves it: it draws letters at random."""
  folder = tmp_path_factory.mktemp("policy")
  tokenizer.ByteTokenizer().save(folder / "tokenizer")
  directory.save_model(folder, CFG)
  args = ocp.args.StandardSave(helpers.make_params(CFG))
  with ocp.CheckpointManager(folder / directory.CHECKPOINTS) as manager:
    manager.save(1, args=ocp.args.Composite(params=args))
  return str(folder)


def make_config(source):
  c = configs.built_in_rl()
  c.source, c.pretrain, c.total_steps = source, None, 2
  c.mesh = dict(data=4, fsdp=2, tensor=1, expert=1)
  c.prompts = dict(template="plain", num_prompts=8, prompt_slots=40)
  c.sampling.update(group_size=4, max_new_tokens=8, cache_chunk=8)
  c.batching = dict(num_minibatches=2, num_microbatches=1, length_multiple=8)
  c.rewards = dict(
    accuracy=0.5, mine=dict(weight=1.0, function="helpers:even_characters")
  )
  c.evaluate.data.test_size = 4
  c.evaluate.prompt_slots = 40
  c.evaluate.sampling.update(group_size=1, max_new_tokens=8, cache_chunk=8)
  c.print_completions_every = 9
  return c


@pytest.mark.parametrize("case", CASES)
def test_it_runs_two_steps(case, source, tmp_path):
  config = configs.override(make_config(source), RL, CASES[case])
  outcome = stages.load("rl").run(config, tmp_path / "run")
  assert outcome is Outcome.FINISHED
  rows = run_log.read(tmp_path / "run" / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2]
  for row in rows:
    assert row["loss"] is not None and row["grad_norm"] is not None
    # Nothing is ever right here, so what reads right answers learns nothing.
    reads_outcome = case in ("advantages.kind=pass_at_k",)
    assert reads_outcome or row["grad_norm"] > 0


def make_text_config(stage, source, folder):
  """Two steps of a stage that learns from texts, on texts of its own."""
  c = getattr(configs, stage)()
  c.source, c.data_dir = source, str(folder / "data")
  c.mesh = dict(data=4, fsdp=2, tensor=1, expert=1)
  c.prompts.template = "bare"
  c.batch.update(num_rows=8, num_microbatches=1)
  c.log_every = 1
  if stage == "preference":
    pair = dict(chosen="yes", rejected="no")
    c.data.path, c.evaluate, c.max_length = (
      str(folder / "texts.jsonl"),
      None,
      64,
    )
    c.optimizer.warmup_updates = 1
    texts = [pair | dict(question=f"Is it {i}?") for i in range(40)]
  else:
    turns = [
      dict(role="user", content="Is it?"),
      dict(role="assistant", content="yes"),
    ]
    c.data.path, c.teacher = str(folder / "texts.jsonl"), source
    c.total_steps, c.batch.row_length = 2, 64
    texts = [dict(messages=turns)] * 64
  lines = "".join(json.dumps(text) + "\n" for text in texts)
  (folder / "texts.jsonl").write_text(lines)
  return c


@pytest.mark.parametrize(("stage", "field"), OF_TEXTS)
def test_it_learns_from_texts(stage, field, source, tmp_path):
  config = make_text_config(stage, source, tmp_path)
  module = stages.load(stage)
  config = configs.override(config, module.SCHEMA, [field])
  assert module.run(config, tmp_path / "run") is Outcome.FINISHED
  rows = run_log.read(tmp_path / "run" / "metrics.jsonl")
  assert len(rows) >= 2 and all(row["loss"] is not None for row in rows)
  # A student that is its own teacher has nothing to learn.
  assert all(row["grad_norm"] > 0 for row in rows) or stage == "distill"


@pytest.mark.parametrize(
  "fields, sentence",
  [
    (["config.advantages.kind=gae"], "reads the values"),
    (["config.adapt_kl.target=0.01", "config.loss.kl_coef=0"], "begin with"),
    (["config.objective=grpoo"], "did you mean 'grpo'"),
    (
      ["config.objective=dppo_tv", "config.correction.kind=truncate_tokens"],
      "corrects for it again",
    ),
    (
      ["config.objective=kl_cov", "config.batching.num_microbatches=2"],
      "num_microbatches = 1",
    ),
    (
      ["config.advantages.kind=pass_at_k", "config.advantages.k=2"],
      "needs the reward accuracy",
    ),
  ],
)
def test_what_does_not_fit_is_one_sentence(fields, sentence, source):
  config = make_config(source)
  if "accuracy" in sentence:
    del config.rewards.accuracy
  with pytest.raises(ValueError, match=sentence):
    config = configs.override(config, RL, fields)
    stages.load("rl").check(config)
