"""Reward models of ours: what they read, their scores, how good they are."""

from grpo_jax.rewards import section as section_lib

# Rewards that load models, imported when a config names them.
BUILT_IN = {
  "model_judge": "grpo_jax.reward_models.terms:judge",
  "reward_model": "grpo_jax.reward_models.terms:outcome",
  "process_reward_model": "grpo_jax.reward_models.terms:process",
}
# A reward stands below this room and cannot name it: the room names itself.
section_lib.REWARDS.update(BUILT_IN)
