r"""What a checkpoint can do: pass@k, majority votes, greedy, and limitations.

  python -m grpo_jax.main --config=experiments/evaluate.py:source=runs/r1_zero

samples 4 completions a problem at temperature 0.6 and top-p 0.95, as in the
paper, and one at temperature 0, and prints a table with 95 % intervals;
`results.json`, `results.md` and `samples.jsonl` are in its directory. Any of
these is a field, such as `--config.evaluate.sampling.group_size=64`.

Words after the colon choose datasets, by default the built-in task (built_in);
several come in one table:

  gsm8k, math500, mgsm, humaneval, mbpp   from $GRPO_JAX_DATA (GSM8K may also
                                          be downloaded); mgsm is in five
                                          languages, with the share of the
                                          thoughts in them
  aime=FILE    JSON lines with `problem` and `answer`; 64 samples a problem
  jsonl=FILE   JSON lines with `question` and `answer`, graded as mathematics
  probes       with the built-in task alone: the loss on text that no stage read
               (of the model in base=DIR, too), and pass@1 with four worked
               examples in front of each question
  against=DIR  also how often completions earn more than those of the model in
               DIR, on the first of the datasets

  python -m grpo_jax.main \
    --config=experiments/evaluate.py:gsm8k,math500,source=checkpoints/qwen2.5-7b

R1-Zero's seed 2 on two CPU cores, 256 problems: its base, 8 samples, pass@1
35.1 % (32.1 to 37.9), pass@8 89.8 %, cons@8 49.7 %, greedy 39.8 %; the policy,
4 samples, 100 % of each, and it wins 82.7 % (80.8 to 84.5) of the prompts
against its base. The corpus costs 0.585 nats per token before RL and 0.670
after. With four worked examples pass@1 is 0 for both: this base has read
documents one by one, and never several in a row.
"""

from grpo_jax import configs

LANGUAGES = ("en", "zh", "de", "fr", "ja")


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    built_in=False,
    gsm8k=False,
    math500=False,
    mgsm=False,
    humaneval=False,
    mbpp=False,
    probes=False,
    aime="",
    jsonl="",
    source="runs/r1_zero",
    base="",
    against="",
  )
  c = configs.evaluate()
  c.source = arg.source
  c.datasets = published(arg)
  if not c.datasets:
    built_in(c)
    if configs.is_real(c.source):
      # What the model itself is asked in, and how far; the task stays.
      usual = configs.evaluate()
      c.model, c.prompts = usual.model, usual.prompts
      c.evaluate.update(prompt_slots=512, prompts_per_batch=16)
      c.evaluate.sampling.update(max_new_tokens=1024, cache_chunk=256)
    if arg.probes or arg.base:
      built_in_probes(c, arg.base)
  elif arg.built_in:
    c.datasets.pair_sum = dict(data=configs.built_in_evaluation().data)
  if arg.mgsm:
    names = {f"mgsm_{language}": language for language in LANGUAGES}
    c.probes.languages = dict(datasets=names)
  if arg.against:
    first = next(iter(c.datasets.values()))
    c.against = first.to_dict() | dict(
      source=arg.against, rewards=c.evaluate.rewards.to_dict()
    )
  return c


def built_in(c):
  """The built-in task, with a base of minutes: short prompts in float32."""
  c.model = dict(dtype="float32")
  c.prompts = dict(template="plain")
  section = configs.built_in_evaluation()
  c.datasets.pair_sum = dict(data=section.data)
  del section.data
  c.evaluate.update(section)


def built_in_probes(c, base):
  """What a policy on the built-in task has forgotten, and examples do to it."""
  # Drawn with another seed than training's.
  text = dict(name="pair_sum_corpus", split="train", size=500, seed=1)
  c.probes.forgetting = dict(data=text, row_length=128, num_rows=32, base=base)
  # Thoughts that try pairs until one fits, in the right form.
  worked = dict(facts=0.0, direct=0.0, persistent=1.0, slips=0.0)
  worked |= dict(bad_thinking=0.0, truncated=0.0)
  c.probes.few_shot = dict(
    dataset="pair_sum",
    examples=text | dict(size=100, mix=worked),
    num_examples=4,
    prompt_slots=512,
  )


def published(arg):
  """By name, how each dataset that the argument names is asked."""
  datasets = {}
  if arg.gsm8k:
    datasets["gsm8k"] = dict(data=dict(name="gsm8k", split="test"))
  if arg.math500:
    datasets["math500"] = dict(
      data=dict(name="math", split="test"), prompt_slots=1024
    )
  for language in LANGUAGES if arg.mgsm else ():
    datasets[f"mgsm_{language}"] = dict(
      data=dict(name="mgsm", split="test", language=language)
    )
  for name in ("humaneval", "mbpp"):
    if getattr(arg, name):
      datasets[name] = dict(
        data=dict(name=name, split="test"), prompt_slots=2048
      )
  if arg.aime:
    datasets["aime"] = dict(
      data=dict(name="aime", split="test", path=arg.aime),
      prompt_slots=1024,
      sampling=dict(group_size=64),
    )
  if arg.jsonl:
    datasets["jsonl"] = dict(
      data=dict(name="jsonl", split="train", path=arg.jsonl, source="math"),
      prompt_slots=1024,
    )
  return datasets
