"""Settings of the built-in tasks, which several experiments share."""

from ml_collections import config_dict


def built_in_evaluation() -> config_dict.ConfigDict:
  """`evaluate` for pair_sum: 256 held-out problems, 4 samples each."""
  return config_dict.ConfigDict(
    dict(
      data=dict(name="pair_sum", split="test", test_size=256),
      prompt_slots=24,
      num_problems=0,
      prompts_per_batch=128,
      sampling=dict(
        group_size=4,
        max_new_tokens=88,
        temperature=0.6,
        top_p=0.95,
        cache_chunk=44,
      ),
    )
  )
