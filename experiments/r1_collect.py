r"""Cold-start data, in the three ways of DeepSeek-R1.

  python -m grpo_jax.main --config=experiments/r1_collect.py

writes runs/r1_collect/dataset, what is kept of

  few_shot  the base, shown a worked example with a long chain of thought
  detailed  the base, its thinking begun for it
  zero      R1-Zero, its Chinese words put into English and its tags in order

The source is runs/r1_zero-bilingual with its base
(`experiments/r1_zero.py:bilingual`). Each record says its way; dataset.json
counts what was dropped, and why.

Kept, seed 0: few_shot 4 of 1,024 completions, detailed 101 of 1,024, zero 64 of
256 (one a question; the others are the same), in 17 s on two cores. A base that
has read documents of one question each cannot make use of an example: it
copies its numbers.

  experiments/r1_collect.py:qwen2.5-7b   real models: word problems as worked
                                         examples, and a prompt that asks for
                                         reflection and verification
  experiments/r1_collect.py:smoke        a batch of each way
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    model=("tiny", "qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-32b"),
    smoke=False,
    runs="runs",
    seed=0,
  )
  c = pair_sum(arg) if arg.model == "tiny" else paper(arg)
  c.seed = arg.seed
  if arg.smoke:
    for way in c.ways.values():
      way.num_problems = c.prompts_per_batch
  return c


def pair_sum(arg):
  """The built-in task: a minute on two cores."""
  zero = f"{arg.runs}/r1_zero-bilingual"
  c = configs.collect()
  configs.built_in_sampling(c)
  asked = dict(template="plain", prompt_slots=24)
  words = ("对", "right"), ("不", "wrong"), ("等", "wait")
  c.ways = dict(
    few_shot=dict(
      source=f"{zero}/base",
      template="plain",
      prompt_slots=128,
      shots="pair_sum",
      num_shots=1,
      num_problems=256,
    ),
    # A base this small follows no instruction.
    detailed=dict(
      source=f"{zero}/base",
      template="plain_thinking",
      prompt_slots=24,
      first_problem=256,
      num_problems=256,
    ),
    zero=dict(
      asked,
      source=zero,
      first_problem=512,
      num_problems=64,
      rewrite=dict(words=words, retag=True),
    ),
  )
  return c


def paper(arg):
  """Thousands of records, each seen by a judge; GSM8K's test split kept out.

  Not run so far: it wants accelerators, and a judge behind
  http://127.0.0.1:8000/v1 that also rewrites what R1-Zero thinks.
  """
  c = configs.collect()
  c.mesh = dict(data=1, fsdp=-1, tensor=1)
  c.decontaminate.tests = dict(gsm8k=dict(name="gsm8k", split="test"))
  judge = dict(url="http://127.0.0.1:8000/v1", model="judge")
  instructed = f"checkpoints/{arg.model}-instruct"
  c.ways.few_shot.source = f"checkpoints/{arg.model}"
  c.ways.detailed.update(source=instructed, template="chat")
  c.ways.zero.source = f"{arg.runs}/r1_zero-{arg.model}"
  c.ways.zero.rewrite.model = judge
  c.rewards.judge = dict(
    weight=1.0, template="readability", scale=(1.0, 10.0), **judge
  )
  c.keep.judge = 0.7
  return c
