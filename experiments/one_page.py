"""GRPO on one page: a base model, then reinforcement learning, from nothing.

  python experiments/one_page.py            3 minutes on two busy CPU cores
  python experiments/one_page.py --smoke    a few steps, to see that it runs

A tiny base model reads sums such as `47+25:`. Its corpus mostly guesses, and
sometimes adds digit by digit first. GRPO rewards the right answer alone. So the
policy learns to work before it answers, which no reward asks for. Held-out
pass@1 at temperature 1, seed 0: 39.5 % to 87.5 %, seed 1: 50.3 % to 93.8 %.

1. Draw G completions of each of P questions from the policy.
2. A rule rewards each: 1 where it ends with `#` and the sum, else 0.
3. Its advantage is the reward less its group's mean, over the group's standard
   deviation.
4. Raise the log-prob of its tokens by the advantage: the ratio to the policy
   that drew is clipped, and a KL term pulls towards the base.

Where it departs from the papers (DeepSeekMath, arXiv 2402.03300, algorithm 1;
DeepSeek-R1-Zero, arXiv 2501.12948): a rollout has 2 updates and not 16; the
reference stays the base; form is not rewarded; one character is one token.
The stage `grpo_jax/stages/rl.py` is the same loop with what a long run needs:
a mesh, checkpoints, evaluations, rewards by name.

P questions, G completions each, S prompt slots, N completion slots; B documents
of T positions.
"""

import argparse
import random

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.losses import advantages, language, policy, weighting
from grpo_jax.models import params as params_lib
from grpo_jax.models import scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.sampling import decode
from grpo_jax.train import optimizer, state, update
from grpo_jax.types import Experience, PromptBatch, TextBatch

CHARACTERS = "\n0123456789+=:# "  # The line's end also ends a completion.
EOS = CHARACTERS.index("\n")
S, N = 6, 24  # "47+25:", and "7+5=12 60+12=72#72\n" with room to spare.
CFG = ModelConfig(
  vocab_size=len(CHARACTERS),
  **dict(num_layers=2, d_model=64, d_ff=192),
  **dict(num_heads=4, num_kv_heads=2, head_dim=16),
)


def encode(text):
  return [CHARACTERS.index(character) for character in text]


def decoded(tokens, mask):
  """Texts of completions [P, G, N], as P lists of G."""
  return [
    ["".join(CHARACTERS[i] for i in row[:n]) for row, n in zip(*g, strict=True)]
    for g in zip(tokens.tolist(), mask.sum(axis=-1).tolist(), strict=True)
  ]


# The world: sums, a corpus that asks some of them, and a rule.

PAIRS = [(a, b) for a in range(10, 100) for b in range(10, 100)]
HELD_OUT = [(a, b) for a, b in PAIRS if (a + 3 * b) % 11 == 0]
TRAINING = [(a, b) for a, b in PAIRS if (a + 3 * b) % 11]


def document(a, b, rng):
  """A line of the corpus: three in four guess, most of them badly."""
  if rng.random() < 0.75:
    off = 0 if rng.random() < 0.25 else rng.choice((-10, -2, -1, 1, 2, 10))
    return f"{a}+{b}:#{a + b + off}\n"
  ones, tens = a % 10 + b % 10, (a // 10 + b // 10) * 10
  return f"{a}+{b}:{a % 10}+{b % 10}={ones} {tens}+{ones}={a + b}#{a + b}\n"


def reward(question, completion):
  return float(completion.endswith(f"#{sum(question)}\n"))


# The base model: next-token prediction on the corpus.


def text_batch(rng, num_rows):
  tokens, mask = np.zeros((2, num_rows, S + N), np.int32)
  for row in range(num_rows):
    ids = encode(document(*rng.choice(TRAINING), rng))
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
  positions = np.broadcast_to(np.arange(S + N, dtype=np.int32), mask.shape)
  # The first token has nothing before it to be predicted from.
  weights = weighting.token_mean(jnp.asarray((mask > 0) & (positions > 0)))
  return TextBatch(tokens, mask, positions, weights)


def text_loss(params, batch):
  given = batch.tokens, batch.positions, batch.segments
  stats = scoring.score_text(params, CFG, *given)
  return language.cross_entropy(stats.logprobs, batch.weights)


def base_model(seed, steps):
  tx, _ = optimizer.make_optimizer(
    steps, learning_rate=3e-3, schedule="cosine", weight_decay=0.05
  )
  step = update.make_update(text_loss, tx)
  specs = params_lib.param_specs(CFG)
  s = state.init_state(params_lib.init_params(jax.random.key(seed), specs), tx)
  rng = random.Random(seed)
  for i in range(steps):
    s, metrics = step(s, text_batch(rng, num_rows=64))
    if (i + 1) % 500 == 0 or i + 1 == steps:
      print(f"base, step {i + 1}: {metrics['loss']:.3f} nats per token")
  return s.params


# Reinforcement learning.


def ask(params, questions, group_size, key):
  """G completions of each question: the rollout, and rewards [P, G]."""
  tokens = jnp.array([encode(f"{a}+{b}:") for a, b in questions])
  rollout = decode.sample(
    params,
    CFG,
    PromptBatch(tokens, jnp.ones_like(tokens, bool)),
    key,
    sampling=decode.SamplingParams(group_size=group_size, max_new_tokens=N),
    eos_ids=(EOS,),
  )
  texts = decoded(rollout.tokens, rollout.completion_mask)
  groups = zip(questions, texts, strict=True)
  rewards = jnp.array([[reward(q, text) for text in g] for q, g in groups])
  return rollout, rewards, texts


@jax.jit
def logprobs_of(params, prompts, tokens, mask):
  given = prompts.tokens, prompts.mask, tokens, mask
  return scoring.score_completions(params, CFG, *given).logprobs


def policy_loss(params, batch):
  given = batch.prompts, batch.tokens, batch.completion_mask
  return policy.grpo_loss(
    logprobs_of(params, *given),
    *(batch.old_logprobs, batch.ref_logprobs, batch.advantages, batch.weights),
    kl_coef=1e-3,
  )


def train(base, seed, steps, num_questions=32, group_size=8, num_minibatches=2):
  tx, _ = optimizer.make_optimizer(steps * num_minibatches, learning_rate=3e-4)
  step = update.make_update(policy_loss, tx)
  # An update takes its state's memory, and the base is still needed.
  s = state.init_state(jax.tree.map(jnp.copy, base), tx)
  rng, key = random.Random(seed), jax.random.key(seed)
  for i in range(steps):
    questions = rng.sample(TRAINING, num_questions)
    step_key = jax.random.fold_in(key, i)
    rollout, rewards, _ = ask(s.params, questions, group_size, step_key)
    given = rollout.prompts, rollout.tokens, rollout.completion_mask
    advantage = advantages.group_advantages(rewards)
    data = Experience(
      *given,
      old_logprobs=logprobs_of(s.params, *given),
      ref_logprobs=logprobs_of(base, *given),
      sampler_logprobs=rollout.logprobs,
      advantages=advantages.spread(advantage, rollout.completion_mask),
      weights=jnp.zeros(rollout.tokens.shape),
    )
    for rows in np.split(np.arange(num_questions), num_minibatches):
      part = jax.tree.map(lambda x, rows=rows: x[rows], data)
      weights = weighting.sequence_mean(part.completion_mask)
      s, _ = step(s, part.replace(weights=weights))
    length = rollout.completion_mask.sum(axis=-1).mean()
    print(f"step {i + 1}: reward {rewards.mean():.3f}, length {length:.1f}")
  return s.params


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--smoke", action="store_true", help="a few steps")
  args = parser.parse_args()
  base = base_model(args.seed, 4 if args.smoke else 1500)
  trained = train(base, args.seed, 2 if args.smoke else 40)
  questions = random.Random(0).sample(HELD_OUT, 256)
  for name, params in (("base", base), ("trained", trained)):
    _, rewards, texts = ask(params, questions, 4, jax.random.key(args.seed))
    a, b = questions[0]
    print(f"{name}: held-out pass@1 {rewards.mean():.1%}", end=", ")
    print(f"{a}+{b}:{texts[0][0].strip()}")


if __name__ == "__main__":
  main()
