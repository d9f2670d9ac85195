"""A run of the rl stage as small as can be, on a base of its own."""

from grpo_jax import configs


def get_config(arg=None):
  c = configs.built_in_rl()
  c.total_steps = 4
  c.pretrain.total_steps = 6
  c.pretrain.optimizer.warmup_updates = 2
  c.pretrain.data.size = 200
  c.pretrain.batch.num_rows = 8
  c.pretrain.model.update(
    d_model=16, d_ff=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8
  )
  # Such a base says nothing right; the shorter it is, the better.
  c.rewards.overlong = dict(weight=1.0, limit=16, cache=16)
  c.prompts.num_prompts = 4
  c.sampling.update(group_size=4, max_new_tokens=16, cache_chunk=16)
  c.batching.length_multiple = 16
  c.optimizer.learning_rate = 1e-2
  c.checkpoint.every = 2
  c.evaluate.data.test_size = 8
  c.evaluate.sampling.max_new_tokens = 16
  return c
