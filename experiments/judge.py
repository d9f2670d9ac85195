r"""A generative judge scores completions of a run; what it said is a dataset.

  python -m grpo_jax.main \
    --config=experiments/judge.py:url=http://127.0.0.1:8000/v1,model=NAME

draws two completions for each of 64 problems from `runs/r1_zero` and asks an
OpenAI-compatible server about each of them (key: the environment variable
JUDGE_KEY, where it is set with `,key=JUDGE_KEY`). `runs/judge-.../dataset` has
a label for every completion on which there was a verdict, and its counts say
about how many there was none. `reward_model.py` can learn from such a dataset
(kind "pointwise").

  experiments/judge.py:judge=DIR     a model of ours judges instead, a run or a
                                     directory of Hugging Face
  experiments/judge.py:source=DIR    completions of another model

A judge must follow instructions and end in a line that the prompt dictates. The
built-in models of 0.6 M parameters, which know four-number sums and small talk,
cannot: as judges they give no verdict, and no verdict is no label.
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg, source="", judge="", url="", model="", key="", runs="runs", seed=0
  )
  c = configs.preferences()
  c.seed = arg.seed
  c.kind = "labels"
  c.source = arg.source or f"{arg.runs}/r1_zero"
  c.model.dtype = "float32"
  c.data = dict(name="pair_sum", split="test", test_size=64)
  c.prompts = dict(template="plain", prompt_slots=24, prompts_per_batch=32)
  c.sampling = dict(
    group_size=2, max_new_tokens=88, temperature=0.6, top_p=0.95, cache_chunk=44
  )
  if configs.is_real(c.source):
    configs.real_preferences(c)
  if arg.url:
    c.rewards = dict(
      judge=dict(
        weight=1.0, url=arg.url, model=arg.model, api_key_env=arg.key, votes=3
      )
    )
  else:
    c.rewards = dict(
      model_judge=dict(
        weight=1.0,
        source=arg.judge or f"{arg.runs}/r1_sft",
        votes=3,
        prompt_slots=1024,
        max_new_tokens=512,
      )
    )
  return c
