"""R1-Zero: reinforcement learning on a base model, with rule-based rewards."""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg, model=("tiny", "qwen2.5-7b"), smoke=False, gsm8k=False
  )
  c = configs.rl()
  c.total_steps = 60
  c.pretrain = configs.pretrain()
  c.pretrain.data = dict(name="pair_sum_corpus", split="train")
  c.pretrain.total_steps = 1200
  c.data = dict(name="pair_sum", split="train")
  c.prompts = dict(template="plain", num_prompts=32, prompt_slots=24)
  c.model = dict(dtype="float32", remat="none", head_chunk=512)
  c.sampling = dict(
    group_size=8, max_new_tokens=96, temperature=1.0, cache_chunk=32
  )
  c.rewards = dict(accuracy=1.0, format=0.25)
  c.ref_every = 20
  c.batching = dict(num_minibatches=2, num_microbatches=1, length_multiple=32)
  c.optimizer.learning_rate = 3e-4
  c.evaluate = dict(
    every=10,
    data=dict(name="pair_sum", split="test", test_size=256),
    prompt_slots=24,
    prompts_per_batch=128,
    sampling=dict(
      group_size=4,
      max_new_tokens=96,
      temperature=0.6,
      top_p=0.95,
      cache_chunk=32,
    ),
  )
  if arg.smoke:
    c.total_steps = 2
    c.pretrain.total_steps, c.pretrain.optimizer.warmup_updates = 20, 5
  return c
