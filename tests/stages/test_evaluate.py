"""Held-out problems: how they are asked, what is averaged, what is written."""

import json

import helpers
import jax
import numpy as np
import optax
import pytest

from grpo_jax import configs, types
from grpo_jax.data import datasets, prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import ask, results
from grpo_jax.rewards import answer
from grpo_jax.runs import directory
from grpo_jax.sampling import decode
from grpo_jax.sampling.generate import Policy
from grpo_jax.stages import evaluate
from grpo_jax.train import checkpoint
from grpo_jax.train import state as state_lib

TOK = tokenizer.ByteTokenizer()
CFG = helpers.tiny(num_layers=1, vocab_size=264)
PROBLEMS = [
  types.Problem("35,22,13,19=35?", "22+13", "pair_sum", prompt)
  for prompt in ("35?", "a longer one", "x", "1,2=3?", "last")
]


def make_questions(prompts_per_batch, **sampling):
  texts = [problem.prompt for problem in PROBLEMS]
  settings = dict(group_size=4, max_new_tokens=6) | sampling
  return ask.Questions(
    PROBLEMS,
    prompts.encode_prompts(texts, TOK, 14),
    14,
    prompts_per_batch,
    decode.SamplingParams(**settings),
  )


def run(questions, sizes=None):
  mesh = helpers.make_mesh(**sizes or {})
  with jax.set_mesh(mesh):
    policy = Policy(helpers.make_params(CFG, mesh), CFG, TOK, mesh)
    return ask.evaluate(policy, questions, jax.random.key(0))


@pytest.fixture(scope="module")
def whole():
  return run(make_questions(5))


@pytest.mark.parametrize("prompts_per_batch", [2, 3])
def test_batches_give_the_completions_of_one(prompts_per_batch, whole):
  results, answers = run(make_questions(prompts_per_batch))
  assert answers.texts == whole[1].texts
  assert results == whole[0]


def test_eight_devices_give_the_completions_of_one(whole):
  results, answers = run(make_questions(2), helpers.EIGHT)
  assert answers.texts == whole[1].texts
  assert results == whole[0]


def test_results_are_means_over_problems_and_samples(whole, monkeypatch):
  """The first text of each problem is right, and problem 3 has two."""
  right = np.zeros((5, 4), np.float32)
  right[:, 0] = 1
  right[3, 1] = 1
  monkeypatch.setattr(
    answer, "accuracy", lambda problems, texts: right.ravel().tolist()
  )
  results, answers = run(make_questions(5))
  assert results["pass@1"] == pytest.approx(right.mean())
  means = right.mean(axis=1)
  assert results["pass@1_stderr"] == pytest.approx(
    means.std(ddof=1) / np.sqrt(5)
  )
  assert (results["problems"], results["samples"]) == (5, 4)
  assert len(answers) == 20
  accuracy = answers.rewards.terms["accuracy"]
  np.testing.assert_array_equal(accuracy, right.ravel())
  assert "pass@1 30.0%" in ask.summary(results)


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
  questions = ask.make_questions(section, TOK, template, tmp_path)
  every = datasets.load(**section["data"], data_dir=tmp_path)
  assert [p.question for p in questions.problems] == [
    every[i].question for i in range(asked)
  ]


def test_greedy_samples_are_all_the_same():
  texts = run(make_questions(5, temperature=0.0))[1].texts
  for p in range(5):
    assert len(set(texts[4 * p : 4 * p + 4])) == 1


def test_greedy_answers_do_not_depend_on_batches_devices_and_key():
  """Asked once each, so many at a time that any mesh divides them."""
  found = []
  for size, key, sizes in ((5, 0, {}), (3, 1, helpers.EIGHT)):
    mesh = helpers.make_mesh(**sizes)
    questions = ask.greedily(make_questions(size))
    with jax.set_mesh(mesh):
      policy = Policy(helpers.make_params(CFG, mesh), CFG, TOK, mesh)
      answers = ask.ask(policy, questions, jax.random.key(key))
    assert (answers.group_size, len(answers)) == (1, 5)
    found.append((answers.texts, results.scalars(answers)))
  assert found[0] == found[1]


@pytest.mark.parametrize("name", ["plain", "chat"])
def test_examples_stand_in_front_of_a_prompt_that_stays_as_it_is(
  name, tmp_path
):
  TOK.save(tmp_path / "tok")
  (tmp_path / "tok" / "chat_template.jinja").write_text(
    "{{ messages[0].role }}> {{ messages[0].content }}\nassistant>"
  )
  tok = tokenizer.load(tmp_path / "tok")
  section = dict(
    data=dict(name="addition", split="test", test_size=3),
    num_problems=0,
    prompt_slots=99,
    prompts_per_batch=4,
    sampling={},
  )
  template = prompts.read_template(name, chat_too=True)
  zero, none, two = (
    ask.make_questions(section, tok, template, tmp_path, examples=examples)
    for examples in ((), [], ["1+1=? 2", "{2+2}=? 4"])
  )
  front = "1+1=? 2\n\n{2+2}=? 4\n\n"
  assert zero.problems == none.problems
  for plain, shown, ids in zip(
    zero.problems, two.problems, two.encoded, strict=True
  ):
    assert shown._replace(prompt="") == plain._replace(prompt="")
    assert shown.prompt.replace(front, "") == plain.prompt
    assert shown.prompt.count(front) == 1
    assert tok.decode(list(ids)).endswith(shown.prompt)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  """Two runs with untrained policies."""
  folder = tmp_path_factory.mktemp("sources")
  mesh = helpers.make_mesh()
  for seed in (0, 1):
    workdir = folder / str(seed)
    TOK.save(workdir / "tokenizer")
    directory.save_model(workdir, CFG)
    with jax.set_mesh(mesh):
      params = helpers.make_params(CFG, mesh, seed)
      checkpointer = checkpoint.Checkpointer(workdir)
      checkpointer.save(3, state_lib.init_state(params, optax.sgd(0.1)))
      checkpointer.close()
  return [str(folder / str(seed)) for seed in (0, 1)]


def variety(problems, completions):
  """A reward that untrained policies earn, too: different characters."""
  return [float(len(set(completion))) for completion in completions]


def stage(sources, data_dir):
  """A config of the stage in which everything happens."""
  c = configs.evaluate()
  c.source, c.data_dir = sources[0], str(data_dir)
  c.model = dict(dtype="float32")
  c.prompts.template = "plain"
  c.evaluate.update(prompt_slots=48, prompts_per_batch=8)
  c.evaluate.sampling.update(group_size=4, max_new_tokens=6, cache_chunk=6)
  short = dict(name="addition", split="test", test_size=11)
  c.datasets = dict(
    mine=dict(data=short),
    other=dict(
      data=short, num_problems=8, sampling=dict(group_size=8), greedy=False
    ),
  )
  corpus = dict(name="addition_corpus", split="train", size=9)
  c.probes.forgetting = dict(
    data=corpus, row_length=32, num_rows=8, base=sources[1]
  )
  c.probes.languages = dict(datasets=dict(mine="en"))
  c.probes.few_shot = dict(
    dataset="mine", examples=corpus, num_examples=1, prompt_slots=256
  )
  rewards = dict(variety=dict(weight=1.0, function=f"{__name__}:variety"))
  c.against = dict(source=sources[1], data=short, rewards=rewards)
  return c


def evaluated(c, workdir):
  with jax.set_mesh(helpers.make_mesh()):
    evaluate.run(c, workdir)
  return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def stage_run(sources, tmp_path_factory):
  folder = tmp_path_factory.mktemp("stage")
  return evaluated(stage(sources, folder / "data"), folder / "run"), folder


def test_the_stage_writes_numbers_a_table_and_every_completion(stage_run):
  found, folder = stage_run
  mine, other = found["datasets"]["mine"], found["datasets"]["other"]
  assert (found["step"], mine["problems"], mine["samples"]) == (3, 11, 4)
  assert (other["problems"], other["samples"]) == (8, 8)
  assert "greedy" in mine and "greedy" not in other
  assert {"pass@1", "pass@2", "pass@4", "cons@4", "format"} <= mine.keys()
  assert list(found["probes"]) == ["few_shot", "forgetting", "languages"]
  assert found["probes"]["forgetting"]["nats per token, increase"]["value"] != 0
  won = found["against"]["win rate"]
  earned = (found["against"][f"reward{of}"] for of in ("", " of the other"))
  assert len({row["value"] for row in earned}) == 2 and won["value"] != 0.5
  assert won["interval"][0] <= won["value"] <= won["interval"][1]
  table = (folder / "run" / "results.md").read_text()
  assert table.count("| mine ") == 1 and "win rate" in table
  samples = [
    json.loads(line)
    for line in (folder / "run" / "samples.jsonl").read_text().splitlines()
  ]
  counted = {}
  for row in samples:
    key = row["dataset"], row["greedy"]
    counted[key] = counted.get(key, 0) + 1
  assert counted == {
    ("mine", False): 44,
    ("mine", True): 11,
    ("other", False): 64,
    ("few_shot", False): 44,
    ("against", False): 44,
    ("against/other", False): 44,
  }
  lines = (folder / "run" / "evaluations.jsonl").read_text().splitlines()
  assert [json.loads(line)["name"] for line in lines] == ["mine", "other"]


def test_results_do_not_depend_on_the_size_of_batches(
  stage_run, sources, tmp_path
):
  found, folder = stage_run
  c = stage(sources, folder / "data")
  c.evaluate.prompts_per_batch = 16
  again = evaluated(c, tmp_path / "run")
  del found["probes"]["forgetting"], again["probes"]["forgetting"]
  assert again == found


def test_a_model_wins_half_of_the_prompts_against_itself(sources, tmp_path):
  c = stage(sources, tmp_path / "data")
  c.probes = {}
  c.datasets = dict(mine=c.datasets.mine)
  c.against.source = c.source
  found = evaluated(c, tmp_path / "run")
  # On a prompt not all completions earn the same; over all pairs it is even.
  assert found["against"]["win rate"]["value"] == 0.5
  rows = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
  assert len({json.loads(row)["reward"] for row in rows}) > 2


@pytest.mark.parametrize(
  "change, sentence",
  [
    (
      lambda c: c.datasets.mine.update(prompt_slot=4),
      r"config\.datasets\.mine has no field 'prompt_slot'; did you mean",
    ),
    (
      lambda c: c.datasets.mine.update(sampling=dict(group_sise=4)),
      r"config\.datasets\.mine\.sampling has no field 'group_sise'",
    ),
    (
      lambda c: c.datasets.update(more=dict(num_problems=4)),
      r"config\.datasets\.more lacks the field 'data'",
    ),
    (
      lambda c: c.evaluate.rewards.update(acuracy=1.0),
      r"no reward 'acuracy'; did you mean 'accuracy'",
    ),
    (
      lambda c: c.probes.update(forgeting={}),
      r"config\.probes has no field 'forgeting'; did you mean 'forgetting'",
    ),
    (
      lambda c: c.probes.languages.update(datasets=dict(mein="en")),
      r"names the dataset 'mein', .*did you mean 'mine'",
    ),
    (
      lambda c: c.probes.languages.update(datasets=dict(mine="xx")),
      r"language='xx' must be",
    ),
    (lambda c: setattr(c, "datasets", {}), r"config\.datasets is empty"),
    (
      lambda c: c.against.update(source="runs/none"),
      r"No model in 'runs/none'.*--config\.against\.source=DIRECTORY",
    ),
    (
      lambda c: c.probes.forgetting.update(base="runs/none"),
      r"No model in 'runs/none'.*--config\.probes\.forgetting\.base=",
    ),
  ],
)
def test_bad_input_is_a_sentence_before_anything_is_written(
  change, sentence, stage_run, sources, tmp_path
):
  c = stage(sources, stage_run[1] / "data")
  with c.unlocked():
    change(c)
  with pytest.raises((ValueError, FileNotFoundError), match=sentence):
    evaluated(c, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_lengths_count_tokens_of_real_problems_only(whole):
  results, answers = whole
  assert 1 <= results["mean_length"] <= 6
  assert results["truncated"] <= 1
  assert len(answers) == 20
