"""The config of each stage, as its function `run` reads it.

Values are the paper's where it has them; experiments say what differs.
"""

from typing import Any

from ml_collections import config_dict


def _common(stage: str) -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.stage = stage  # Which of `grpo_jax/stages/` runs.
  # Of everything that is drawn: parameters, order, completions.
  c.seed = 0
  # Prepared datasets, shared by all runs of this machine.
  c.data_dir = "~/.cache/grpo_jax"
  # Devices along each axis: copies of the model, shards of its parameters,
  # of its matrices, of its experts; -1 for as many as are left.
  c.mesh = dict(data=-1, fsdp=1, tensor=1, expert=1)
  return c


def _optimizer(learning_rate: float) -> dict[str, Any]:
  return dict(
    learning_rate=learning_rate,
    schedule="constant",
    warmup_updates=0,
    final_fraction=0.0,
    clip_norm=1.0,
    weight_decay=0.0,
  )


def pretrain() -> config_dict.ConfigDict:
  """The pretrain stage: a base model from text."""
  c = _common("pretrain")
  c.total_steps = 900  # Optimizer updates.
  # What `data.datasets.load` reads.
  c.data = dict(name="pair_sum_corpus", split="train", size=100_000)
  # A sentencepiece model trained on the text, or bytes.
  # `symbols` are one token wherever they occur.
  c.tokenizer = dict(
    kind="sentencepiece",
    vocab_size=96,
    byte_fallback=False,
    symbols=("<think>", "</think>", "<answer>", "</answer>", " wait "),
  )
  c.model = dict(
    num_layers=3,
    d_model=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    d_ff=384,
    dtype="float32",
  )
  # Rows of an update, tokens of a row, and in how many pieces it is computed.
  c.batch = dict(num_rows=32, row_length=128, num_microbatches=1)
  # What `train.text_loss.loss_fn` reads.
  c.loss = dict(z_coef=0.0, label_smoothing=0.0)
  c.optimizer = _optimizer(3e-3) | dict(
    schedule="cosine", warmup_updates=50, final_fraction=0.05, weight_decay=0.05
  )
  # A sigmoid router's biases move by this towards an even load, per update.
  c.router_bias_rate = 0.0
  c.log_every = 25  # Updates.
  # Updates between two, and how many of the newest are kept.
  c.checkpoint = dict(every=300, keep=1)
  return c


def rl() -> config_dict.ConfigDict:
  """The rl stage, with DeepSeek-R1-Zero's hyperparameters where it has them."""
  c = _common("rl")
  c.total_steps = 10_400  # Rollouts, each with its updates.
  # The directory of the base model: of Hugging Face, or of a run, whose newest
  # checkpoint it is. Empty where `pretrain` says how to make one in this run's
  # own directory.
  c.source = ""
  c.pretrain = None
  # How the source's model is computed, not what it is.
  c.model = dict(dtype="bfloat16", remat="full", head_chunk=2048)
  # What `models.lora.LoraConfig` reads: with a rank above 0 the source is
  # frozen, its matrices in the dtype of `model`, and adapters are trained.
  c.lora = dict(rank=0, alpha=32.0, targets=("all-linear",), rslora=False)
  c.data = dict(name="gsm8k", split="train")
  # `template`: a name in `data.prompts.TEMPLATES`, a file, or "chat" for the
  # chat template of the source's tokenizer.
  c.prompts = dict(template="r1_zero", num_prompts=32, prompt_slots=512)
  # Of a mixture: by source, how many steps are done before its problems are
  # asked; 0 for those that are not named.
  c.from_step = dict()
  # Problems that are solved always or never are asked less often: a section of
  # what `rl.curriculum.PassRates` reads, such as dict(share=0.25).
  c.curriculum = None
  # Groups that all do alike are drawn anew: a section of what
  # `rl.dynamic_sampling.fill` reads, such as dict(max_rounds=4).
  c.dynamic_sampling = None
  c.sampling = dict(
    group_size=16,
    max_new_tokens=32_768,
    temperature=1.0,
    top_p=1.0,
    cache_chunk=4096,
  )
  # By steps done, fields of `sampling` from then on:
  # {8200: dict(max_new_tokens=65_536)}.
  c.schedule = dict()
  # By name, its weight, or a section: weight, gates, and the reward's options.
  c.rewards = dict(accuracy=1.0, format=1.0)
  # `kind`: a name in `losses.advantages.ADVANTAGES`, then its options. With a
  # value model it is "gae".
  c.advantages = dict(kind="group", scale="std")
  # What the sampler's error is corrected by: `kind`, a name in
  # `losses.correction.CORRECTIONS`, then its options.
  c.correction = dict(kind="none")
  # PPO: what `value()` returns.
  c.value = None
  # Names in `losses.policy.OBJECTIVES` and `losses.weighting.WEIGHTINGS`.
  c.objective = "grpo"
  c.weighting = "sequence_mean"
  # Options of the objective that differ from its own defaults, so that another
  # objective comes with its own: GRPO clips at 0.2 on both sides.
  c.loss = dict(kl_coef=1e-3)
  # `loss.kl_coef` follows the KL that is measured: a section of what
  # `losses.kl.adapt_coef` reads, such as dict(target=0.01).
  c.adapt_kl = None
  # `loss.entropy_coef` rises while entropy is below a target: a section of what
  # `losses.kl.adapt_entropy_coef` reads, such as dict(target=0.2).
  c.adapt_entropy = None
  # The reference becomes the policy every so many steps; 0 for never.
  c.ref_every = 400
  c.batching = dict(
    num_minibatches=1,  # Optimizer updates of a rollout.
    # Pieces in which an update is computed; 0 for as few as fit the devices.
    num_microbatches=1,
    length_multiple=512,  # Tokens: lengths that are compiled.
  )
  c.optimizer = _optimizer(3e-6)
  # A sigmoid router's biases move by this towards an even load, per update.
  c.router_bias_rate = 0.0
  # Held-out problems: before the first step and after the last, and between.
  c.evaluate = _evaluation()
  c.print_completions_every = 20  # Steps: the best and the worst of one.
  # After so many steps in a row in which nothing could be learned, the run says
  # what it is and what to look at; see `rl.health`.
  c.health = dict(patience=5)
  # Steps between two, and how many of the newest are kept.
  c.checkpoint = dict(every=50, keep=2)
  return c


def _evaluation() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.every = 100  # Steps; 0 for both ends alone.
  c.data = dict(name="gsm8k", split="test")
  c.prompt_slots = 512  # The longest prompt, in tokens.
  c.num_problems = 0  # The first ones of the dataset; 0 for all.
  # Asked at once; in training 0 is for as many as fit the devices.
  c.prompts_per_batch = 64
  c.sampling = dict(
    group_size=4,
    max_new_tokens=32_768,
    temperature=0.6,
    top_p=0.95,
    cache_chunk=4096,
  )
  c.rewards = dict(accuracy=1.0, format=1.0)
  return c


def sft() -> config_dict.ConfigDict:
  """The sft stage, as DeepSeek-R1 trains its base: two epochs."""
  c = _common("sft")
  # The directory of the model to start from: of a run, or of Hugging Face.
  c.source = ""
  # How the source's model is computed, not what it is.
  c.model = dict(dtype="bfloat16", remat="full", head_chunk=2048)
  # As in `rl`.
  c.lora = rl().lora
  # What `data.datasets.load` reads: conversations.
  c.data = dict(name="records", split="train")
  c.prompts = dict(template="chat")
  c.num_epochs = 2  # Times that each conversation is read.
  # Ends earlier where this is not 0; the learning rate falls by then.
  c.max_steps = 0
  # Conversations longer than a row are left out. `num_microbatches`: pieces of
  # a gradient; 0 for as few as fit the devices.
  c.batch = dict(num_rows=64, row_length=32_768, num_microbatches=8)
  # As in `pretrain`.
  c.loss = pretrain().loss
  c.optimizer = _optimizer(1e-5) | dict(schedule="cosine", final_fraction=0.1)
  # A sigmoid router's biases move by this towards an even load, per update.
  c.router_bias_rate = 0.0
  # Held-out problems before the first and after the last step, and every so
  # many between them; None for no evaluation.
  c.evaluate = rl().evaluate
  c.evaluate.every = 0
  c.log_every = 1  # Updates.
  # Updates between two, and how many of the newest are kept.
  c.checkpoint = dict(every=100, keep=2)
  return c


def preference() -> config_dict.ConfigDict:
  """The preference stage, with DPO's hyperparameters: one policy, and pairs.

  https://arxiv.org/abs/2305.18290, appendix B.
  """
  c = _common("preference")
  # As in `sft`: the policy to start from, which is the reference too.
  c.source = ""
  c.model = dict(dtype="bfloat16", remat="full", head_chunk=2048)
  c.lora = rl().lora
  # A dataset, a file or a folder that `data.preferences` reads.
  c.data = dict(path="")
  c.prompts = dict(template="chat")
  c.max_length = 8192  # Tokens; pairs with a longer text are left out.
  # Times that each pair is read.
  c.num_epochs = 1
  # Pairs of an update, and in how many pieces it is computed.
  c.batch = dict(num_rows=64, num_microbatches=8)
  # A name in `losses.preference.PREFERENCES`, and the options of that loss.
  c.loss = dict(kind="dpo")
  c.optimizer = _optimizer(1e-6) | dict(warmup_updates=150)
  # As in `sft`; held-out pairs are evaluated at the same steps, and at both
  # ends without it.
  c.evaluate = sft().evaluate
  c.log_every = 1  # Updates.
  # Updates between two, and how many of the newest are kept.
  c.checkpoint = dict(every=100, keep=2)
  return c


def value() -> config_dict.ConfigDict:
  """`value` of the rl stage: the value model of PPO."""
  c = config_dict.ConfigDict()
  # The run of a reward model to begin with; empty for a copy of the policy.
  c.source = ""
  # What `losses.value.value_loss` reads.
  c.loss = dict(clip=0.2)
  c.optimizer = _optimizer(1e-5)
  return c


def distill() -> config_dict.ConfigDict:
  """The distill stage: towards a teacher's distribution at every token."""
  c = _common("distill")
  # Steps; 0 for as many as `num_epochs` of `data` take.
  c.total_steps = 0
  c.num_epochs = 2
  # Directories of the policy and of the teacher, of a run or of Hugging Face.
  c.source = ""
  c.teacher = ""
  # How both are computed.
  c.model = dict(dtype="bfloat16", remat="full", head_chunk=2048)
  # "divergence": over the vocabulary. "advantage": REINFORCE on the policy's
  # own tokens.
  c.objective = "divergence"
  # What `losses.distill.divergence` reads.
  c.divergence = dict(kind="forward_kl", beta=0.5, temperature=1.0)
  # The chance that a step's text is the policy's own, to `prompts`, and not of
  # `data`.
  c.on_policy_share = 0.0
  # What is read of off-policy texts, and the shape of an update's rows.
  c.data = dict(name="records", split="train", path="")
  c.batch = dict(
    num_rows=64, row_length=32_768, num_microbatches=8, length_multiple=512
  )
  c.prompts = dict(
    template="r1_zero",
    data=dict(name="gsm8k", split="train"),
    num_prompts=64,
    prompt_slots=512,
  )
  c.sampling = dict(
    group_size=1,
    max_new_tokens=32_256,
    temperature=1.0,
    top_p=1.0,
    cache_chunk=4096,
  )
  c.optimizer = _optimizer(1e-4) | dict(schedule="cosine", final_fraction=0.1)
  # A sigmoid router's biases move by this towards an even load, per update.
  c.router_bias_rate = 0.0
  c.log_every = 10  # Updates.
  # Updates between two, and how many of the newest are kept.
  c.checkpoint = dict(every=100, keep=1)
  return c


def evaluate() -> config_dict.ConfigDict:
  """The evaluate stage: what a run's newest checkpoint, or a model, can do."""
  c = _common("evaluate")
  # As in `rl`: a run, or a model of Hugging Face.
  c.source = ""
  # How the source's model is computed, not what it is.
  c.model = dict(dtype="bfloat16")
  # As in `rl`.
  c.prompts = dict(template="r1_zero")
  # How each of the datasets is asked, unless its section says otherwise.
  c.evaluate = rl().evaluate
  del c.evaluate.every, c.evaluate.data
  c.evaluate.greedy = True  # Each problem once more, at temperature 0.
  # By a name of yours: `data`, and fields of `evaluate` that differ.
  c.datasets = dict(gsm8k=dict(data=dict(name="gsm8k", split="test")))
  # What `evaluation.probes.PROBES` has; none by default.
  c.probes = config_dict.ConfigDict()
  # Another model to win prompts against: `source`, `data`, `rewards`, and
  # fields of `evaluate` that differ.
  c.against = None
  return c


def preferences() -> config_dict.ConfigDict:
  """The preferences stage: completions compared, or their steps labelled."""
  c = _common("preferences")
  c.kind = "pairs"  # Or "labels", or "steps".
  c.source = ""
  c.model = dict(dtype="bfloat16")
  c.data = dict(name="gsm8k", split="train")
  c.num_problems = 0  # The first ones of the dataset; 0 for all.
  c.prompts = dict(template="r1_zero", prompt_slots=512, prompts_per_batch=64)
  c.sampling = dict(
    group_size=4, max_new_tokens=4096, temperature=1.0, cache_chunk=1024
  )
  c.rewards = dict(accuracy=1.0)
  # Of `curation.annotate.pairs_of` and `steps_of`.
  c.pairs = dict(margin=0.5, per_problem=1)
  c.steps = dict(separators=("\n\n",), continuations=8)
  return c


def reward_model() -> config_dict.ConfigDict:
  """The reward_model stage, as DeepSeek-R1 trains its model of helpfulness."""
  c = _common("reward_model")
  c.kind = "bradley_terry"  # Or "pointwise", or "process".
  # As for `rl`: the policy that gets a scalar head, and all of it trained.
  c.source = ""
  c.pretrain = None
  c.model = dict(dtype="bfloat16", remat="full")
  # A dataset, a file or a folder that `data.preferences` reads.
  c.data = dict(path="")
  c.prompts = dict(template="r1_zero")
  # What of a completion is read; see `reward_models.learned.Reading`.
  c.reading = dict(reads="answer", separators=("\n\n",))
  c.max_length = 8192  # Tokens; texts that are longer are left out.
  c.epochs = 1  # Times that each text is read.
  # Rows of an update, and in how many pieces it is computed.
  c.batch = dict(num_rows=256, num_microbatches=1)
  # Keyword arguments of the kind's loss in `stages.reward_model`.
  c.loss = dict()
  c.optimizer = _optimizer(6e-6)
  c.evaluate = dict(every=0, rows_per_batch=32)
  # Of Bradley-Terry scores; see `stages.reward_model.normalization`.
  c.normalize = dict(reference="both", num_pairs=1024, unit_variance=False)
  c.log_every = 10  # Updates.
  # Updates between two, and how many of the newest are kept.
  c.checkpoint = dict(every=50, keep=1)
  return c


def export() -> config_dict.ConfigDict:
  """The export stage: a run's newest checkpoint as a Hugging Face directory."""
  c = config_dict.ConfigDict()
  c.stage = "export"
  c.mesh = _common("export").mesh
  c.source = ""
  # What `models.hf.save` reads.
  c.save = dict(dtype="bfloat16", max_shard_bytes=5_000_000_000)
  # Of a run that trained adapters: these alone, in PEFT's format.
  c.adapters_only = False
  return c


def chain() -> config_dict.ConfigDict:
  """Stages in a row: `steps` by name, each the config of its stage."""
  c = config_dict.ConfigDict()
  c.stage = "chain"
  # Names of steps; each step's run goes to a directory of its name.
  c.order = ()
  c.steps = config_dict.ConfigDict()
  # What `runs.report.results_table` reads: rows (title, step), and columns.
  c.table = dict(rows=(), columns=())
  return c


def rejection() -> config_dict.ConfigDict:
  """The rejection stage: a dataset of what a policy does well.

  DeepSeek-R1 keeps about 600k right and readable completions of reasoning
  prompts, arXiv 2501.12948 section 2.3.3.
  """
  c = _common("rejection")
  c.model = dict(dtype="bfloat16")
  c.data = dict(name="gsm8k", split="train")
  # Questions and completions that have so many words in a row in common with a
  # question of a test set are left out. `tests`: by names of one's own, what
  # `data.datasets.load` reads.
  c.decontaminate = dict(ngram=10, tests=dict())
  # How problems are asked, and of which model: by names of one's own, what
  # `curation.ask.Prompting` reads.
  c.ways = dict(sampled=dict(source=""))
  c.prompts_per_batch = 64
  c.sampling = dict(
    group_size=4,
    max_new_tokens=32_768,
    temperature=1.0,
    top_p=0.95,
    cache_chunk=4096,
  )
  # Terms as in training, without their weights, and the least score of each.
  c.rewards = dict(accuracy=1.0)
  c.keep = dict(accuracy=1.0)
  # What `curation.filters` reads: True, False, or the filter's options.
  c.filters = dict(
    truncated=True,
    unreadable=True,
    bad_format=True,
    mixed_language=dict(language="en", least=0.95),
    long_paragraph=dict(most=1500),
    code_block=True,
    duplicate=True,
    near_duplicate=dict(n=5, most=0.8),
  )
  # Of all that is kept of one question; 0 for no limit.
  c.max_per_prompt = 0
  return c


def collect() -> config_dict.ConfigDict:
  """The rejection stage as it makes cold-start data, in the paper's three ways.

  DeepSeek-R1, arXiv 2501.12948 section 2.3.1. The source of each way is the
  experiment's to say: a base model, a base or another model that follows
  instructions, and R1-Zero.
  """
  c = rejection()
  c.ways = dict(
    few_shot=dict(source="", shots="word_problems", num_shots=2),
    detailed=dict(source="", message="detailed"),
    zero=dict(source="", rewrite=dict(retag=True)),
  )
  for way in c.ways.values():
    way.prompt_slots = 1024
  c.filters.brief = dict(least=50)  # A chain of thought, and no guess.
  c.max_per_prompt = 1
  return c
