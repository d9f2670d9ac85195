"""Reinforcement learning: GRPO, as in R1-Zero, or PPO with a value model.

Prompts > rollout > rewards > advantages > update. P prompts, G completions
each, N completion slots, B = P * G rows.

Where it departs from DeepSeek-R1 (arXiv 2501.12948): a completion that cannot
be scored leaves its group, and prompt and completions are scored once more by
the trainer before the first update, whose log-probs are the old ones.
"""

import pathlib

from ml_collections import ConfigDict

from grpo_jax.evaluation import ask
from grpo_jax.rl import experience, metrics, schedule
from grpo_jax.rl import health as health_lib
from grpo_jax.runs import log as run_log
from grpo_jax.runs import progress, report
from grpo_jax.runs.signals import Outcome
from grpo_jax.sampling import generate
from grpo_jax.stages import fit, rl_checks, rl_setup, setup
from grpo_jax.train import loop as loop_lib

SCHEMA, check, describe = (
  rl_checks.SCHEMA,
  rl_checks.check,
  rl_checks.describe,
)


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Trains a policy by GRPO or PPO.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: there is no base model, and no way given to make one.
  """
  check(config)
  with setup.open_run(config, workdir) as run:
    config = fit.fit_rl(run)
    begun = rl_setup.begin(run)
    if begun is None:
      return Outcome.STOPPED
    loop, learner, rollouts, questions, learning_rate, health = begun
    log = run_log.CompletionsLog(workdir, restored=loop.restored)
    completions, scalars = None, {}

    def policy() -> generate.Policy:
      return generate.Policy(learner.policy, run.cfg, run.tok, run.mesh)

    def save(step: int) -> None:
      kept = {"curriculum": rollouts.curriculum.get_state()}
      learner.save(loop.checkpointer, step, kept)

    def evaluate() -> loop_lib.Evaluations:
      key = run.key(rl_setup.EVALUATE)
      results, _ = ask.evaluate(policy(), questions, key)
      progress.say(f"Held out, after step {loop.step}: {ask.summary(results)}")
      return {config.evaluate.data.name: results}

    def show(step: int) -> None:
      log.write(step, completions)
      new = health.add(run_log.metrics_row(step, scalars))
      if new:
        progress.warn(new)
        run_log.write_warnings(workdir, health.records())
      if step % config.print_completions_every == 0:
        progress.say(progress.render(completions))

    # A step of the recipe, in four sentences:
    for step in loop.steps(save, evaluate, show):
      # 1. The policy answers each prompt G times; graders begin to read.
      sampling = schedule.sampling_at(config.sampling, config.schedule, step)
      pending, counts = rollouts.draw(policy(), step, sampling)
      # 2. Meanwhile policy, reference and value model score what was drawn.
      with loop.timer.phase("score"):
        rollout = experience.trim(
          pending.completions.rollout, config.batching.length_multiple
        )
        scored = learner.score(rollout, sampling.temperature)
      rewards = pending.finish()  # What remains of it after the device's work.
      completions = pending.completions.replace(
        rollout=rollout, rewards=rewards
      )
      # 3. Rewards become advantages: how much better than expected.
      with loop.timer.phase("score"):
        data = experience.make_experience(
          completions, scored, **rl_setup.experience_options(config)
        )
      # 4. Updates make what was better more probable.
      with loop.timer.phase("update"):
        scalars = learner.update(
          data,
          sampling.temperature,
          sampling.max_new_tokens,
          float(scored.entropy[data.completion_mask].mean()),
        )
      if config.ref_every and (step + 1) % config.ref_every == 0:
        learner.refresh_reference()
      scalars |= metrics.rollout_metrics(completions, data, scored.entropy)
      scalars |= counts | rollouts.curriculum.metrics()
      scalars["learning_rate"] = learning_rate(learner.state.step - 1)
      loop.log(scalars, scalars["num_tokens"])
    log.close()
    return _end(loop, health, workdir)


def _end(
  loop: loop_lib.Loop, health: health_lib.Health, workdir: pathlib.Path
) -> Outcome:
  """Says how the run ended, what it came to, and what to look at."""
  health.finish()
  run_log.write_warnings(workdir, health.records())
  if not loop.finished:
    progress.say(
      f"Stopped after step {loop.step}; the same command goes on from there."
    )
    progress.warn(health.warnings)
    return Outcome.STOPPED
  picture = report.write_report(workdir)
  progress.say(report.compare(workdir))
  progress.say(f"A picture of the run is in {picture}.")
  progress.warn(health.warnings)  # Once more, as the last that is read.
  return Outcome.FINISHED
