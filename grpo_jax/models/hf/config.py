"""A `config.json` of Hugging Face as a ModelConfig, and back.

What a file says that `models.transformer` does not do is an error of one
sentence that names the field.
"""

from collections.abc import Mapping
from typing import Any

from grpo_jax.models.config import ModelConfig, RopeScaling, is_finite

# Our fields by those of config.json, for all families that have them.
_SIZES = {
  "vocab_size": "vocab_size",
  "num_hidden_layers": "num_layers",
  "hidden_size": "d_model",
  "num_attention_heads": "num_heads",
  "intermediate_size": "d_ff",
  "rms_norm_eps": "norm_eps",
}
_QWEN3_MOE = {
  "num_experts": "num_experts",
  "num_experts_per_tok": "experts_per_token",
  "moe_intermediate_size": "d_expert",
  "norm_topk_prob": "normalize_experts",
}
_DEEPSEEK_V3 = {
  "n_routed_experts": "num_experts",
  "num_experts_per_tok": "experts_per_token",
  "moe_intermediate_size": "d_expert",
  "n_shared_experts": "num_shared_experts",
  "first_k_dense_replace": "num_dense_layers",
  "n_group": "router_groups",
  "topk_group": "router_top_groups",
  "norm_topk_prob": "normalize_experts",
  "routed_scaling_factor": "routed_scale",
  "kv_lora_rank": "latent_dim",
  "qk_rope_head_dim": "rope_dim",
  "v_head_dim": "value_dim",
}
_ARCHITECTURES = {
  "deepseek_v3": "DeepseekV3ForCausalLM",
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "qwen3_moe": "Qwen3MoeForCausalLM",
}
# Fields that change the network in a way that ours has not, with the values
# that leave it alone.
_ONLY = {
  "hidden_act": ("silu",),
  "attention_bias": (False, None),
  "mlp_bias": (False, None),
  "partial_rotary_factor": (1.0, None),
  "decoder_sparse_step": (1,),
  "moe_layer_freq": (1,),
  "scoring_func": ("sigmoid",),
  "topk_method": ("noaux_tc",),
  "use_mrope": (False, None),
}
# What fields must be, where they are there: whole numbers, numbers, flags.
# Null stands for what is absent in those that are no sizes of every model.
_WHOLE = (
  *(name for name in _SIZES if name != "rms_norm_eps"),
  *("num_key_value_heads", "head_dim", "max_position_embeddings"),
  *("sliding_window", "max_window_layers", "num_nextn_predict_layers"),
  *("num_experts", "num_local_experts", "num_experts_per_tok"),
  *("moe_intermediate_size", "n_routed_experts", "n_shared_experts"),
  *("first_k_dense_replace", "n_group", "topk_group", "q_lora_rank"),
  *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)
_NUMBERS = ("rms_norm_eps", "rope_theta", "routed_scaling_factor")
_FLAGS = (
  *("tie_word_embeddings", "norm_topk_prob", "use_sliding_window"),
  "rope_interleave",
)
_YARN = (
  "beta_fast",
  "beta_slow",
  "attention_factor",
  "mscale",
  "mscale_all_dim",
)


def from_hf(config: Mapping[str, Any], **changes: Any) -> ModelConfig:
  """Returns the model that a config.json tells of.

  Args:
    config: the file, as JSON gives it.
    **changes: fields of ModelConfig that change how, not what, is computed.

  Raises:
    ValueError: a family or a variant that is not supported, or a missing field.
  """
  if not isinstance(config, Mapping):
    raise ValueError(
      f"config.json must hold an object, not {type(config).__name__}."
    )
  # Transformers 5 gives Qwen3-MoE's experts another name.
  if "num_local_experts" in config:
    config = {"num_experts": config["num_local_experts"]} | dict(config)
  family_ = config.get("model_type")
  if not isinstance(family_, str) or family_ not in _ARCHITECTURES:
    raise ValueError(
      f"model_type={family_!r} of config.json is not supported; there are"
      f" {', '.join(_ARCHITECTURES)}."
    )
  _check_values(config)
  for name, values in _ONLY.items():
    if config.get(name, values[0]) not in values:
      raise ValueError(
        f"{name}={config[name]!r} of config.json is not supported;"
        f" it must be {values[0]!r}."
      )
  try:
    fields = {ours: config[name] for name, ours in _SIZES.items()}
    heads = config["num_attention_heads"]
    fields |= dict(
      num_kv_heads=config.get("num_key_value_heads") or heads,
      head_dim=config.get("head_dim") or config["hidden_size"] // heads,
      tied_head=config.get("tie_word_embeddings", False),
      max_positions=config.get("max_position_embeddings", 0),
      qkv_bias=family_ == "qwen2",
      qk_norm=family_ in ("qwen3", "qwen3_moe"),
      sliding_window=_sliding_window(config, family_),
      **_rope(config),
    )
    if family_ == "qwen3_moe":
      fields |= {ours: config[name] for name, ours in _QWEN3_MOE.items()}
      fields["num_dense_layers"] = _dense_layers(config)
    if family_ == "deepseek_v3":
      fields |= {ours: config[name] for name, ours in _DEEPSEEK_V3.items()}
      fields |= dict(
        num_kv_heads=heads,
        head_dim=config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        query_latent_dim=config["q_lora_rank"] or 0,
        rope_interleaved=config.get("rope_interleave", True),
        router="sigmoid",
      )
  except KeyError as error:
    raise ValueError(
      f"config.json of a {family_} model lacks the field {error}."
    ) from None
  return ModelConfig(**fields | changes)


def _check_values(config: Mapping[str, Any]) -> None:
  """Raises ValueError where a field is not of its kind."""
  for name, value in config.items():
    if value is None and name not in _SIZES:
      continue
    if name in _WHOLE and type(value) is not int:
      kind = "a whole number"
    elif name in _WHOLE and value < (1 if name in _SIZES else 0):
      kind = "positive"
    elif name in _NUMBERS and not is_finite(value):
      kind = "a finite number"
    elif name == "rope_theta" and value <= 0:
      kind = "above 0"
    elif name == "rms_norm_eps" and value < 0:
      kind = "at least 0"
    elif name in _FLAGS and not isinstance(value, bool):
      kind = "true or false"
    elif name in ("rope_parameters", "rope_scaling") and not isinstance(
      value, Mapping
    ):
      kind = "an object"
    elif name == "mlp_only_layers" and not isinstance(value, list):
      kind = "a list"
    else:
      continue
    raise ValueError(f"{name}={value!r} of config.json must be {kind}.")


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
  """Returns the config.json of a model, without its tokens' ids and dtype.

  Raises:
    ValueError: no family has this model.
  """
  name = family(cfg)
  config = {
    "architectures": [_ARCHITECTURES[name]],
    "model_type": name,
    "hidden_act": "silu",
    "num_key_value_heads": cfg.num_kv_heads,
    "head_dim": cfg.head_dim,
    "tie_word_embeddings": cfg.tied_head,
    "rope_theta": cfg.rope_theta,
    "rope_scaling": _scaling_to_hf(cfg.rope_scaling),
  }
  config |= {theirs: getattr(cfg, ours) for theirs, ours in _SIZES.items()}
  if cfg.max_positions:
    config["max_position_embeddings"] = cfg.max_positions
  if name != "qwen2":  # Whose biases need no field.
    config["attention_bias"] = False
  if name == "mistral":
    config["sliding_window"] = cfg.sliding_window or None
  elif name != "llama":
    config |= dict(
      use_sliding_window=bool(cfg.sliding_window),
      sliding_window=cfg.sliding_window or None,
      max_window_layers=0 if cfg.sliding_window else cfg.num_layers,
    )
  if name == "qwen3_moe":
    config |= {
      theirs: getattr(cfg, ours) for theirs, ours in _QWEN3_MOE.items()
    }
    config |= dict(
      decoder_sparse_step=1, mlp_only_layers=list(range(cfg.num_dense_layers))
    )
  if name == "deepseek_v3":
    config |= {
      theirs: getattr(cfg, ours) for theirs, ours in _DEEPSEEK_V3.items()
    }
    for absent in ("use_sliding_window", "sliding_window", "max_window_layers"):
      del config[absent]
    config |= dict(
      head_dim=cfg.rope_dim,
      qk_nope_head_dim=cfg.head_dim - cfg.rope_dim,
      q_lora_rank=cfg.query_latent_dim or None,
      rope_interleave=cfg.rope_interleaved,
      moe_layer_freq=1,
      scoring_func="sigmoid",
      topk_method="noaux_tc",
      num_nextn_predict_layers=0,
    )
  return config


def family(cfg: ModelConfig) -> str:
  """Returns the `model_type` that Hugging Face has for a model.

  A Mistral without a sliding window is a Llama.

  Raises:
    ValueError: no family has this combination of parts.
  """
  sigmoid = bool(cfg.num_experts) and cfg.router == "sigmoid"
  parts = dict(
    latent_attention=bool(cfg.latent_dim),
    sigmoid_router=sigmoid,
    shared_experts=bool(cfg.num_shared_experts),
    softmax_router=bool(cfg.num_experts) and not sigmoid,
    qkv_bias=cfg.qkv_bias,
    qk_norm=cfg.qk_norm,
    sliding_window=bool(cfg.sliding_window),
    rope_interleaved=cfg.rope_interleaved,
  )
  has = {name for name, there in parts.items() if there}
  for name, needed, allowed in (
    (
      "deepseek_v3",
      {"latent_attention", "sigmoid_router", "shared_experts"},
      {"rope_interleaved"},
    ),
    ("qwen3_moe", {"softmax_router", "qk_norm"}, {"sliding_window"}),
    ("qwen3", {"qk_norm"}, {"sliding_window"}),
    ("qwen2", {"qkv_bias"}, {"sliding_window"}),
    ("mistral", {"sliding_window"}, set()),
    ("llama", set(), set()),
  ):
    if needed <= has <= needed | allowed:
      return name
  raise ValueError(
    "No family of Hugging Face has a model with"
    f" {', '.join(sorted(has)) or 'these parts'} and nothing else."
  )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns rope_theta and rope_scaling, of files old and new."""
  rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
  for name, value in rope.items():
    if (
      name not in ("rope_type", "type")
      and value is not None
      and not is_finite(value)
    ):
      raise ValueError(
        f"{name}={value!r} of config.json's rope must be a finite number."
      )
  given = rope.pop("rope_theta", None), config.get("rope_theta"), 1e4
  theta = next(value for value in given if value is not None)
  kind = rope.get("rope_type", rope.get("type", "default"))
  fields = {"rope_theta": float(theta)}
  if kind == "default":
    return fields
  if kind not in ("linear", "llama3", "yarn"):
    raise ValueError(
      f"rope_type={kind!r} of config.json is not supported; there are default,"
      " linear, llama3 and yarn."
    )
  if rope.get("partial_rotary_factor", 1.0) != 1.0:
    raise ValueError("partial_rotary_factor of config.json is not supported.")
  if not rope.get("truncate", True):
    raise ValueError("truncate=false of config.json's yarn is not supported.")
  scaling = {"kind": kind}
  if kind != "linear":
    scaling["original_length"] = (
      rope.get("original_max_position_embeddings")
      or config["max_position_embeddings"]
    )
  scaling["factor"] = float(
    rope.get("factor")
    or config["max_position_embeddings"] / scaling["original_length"]
  )
  optional = {
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": _YARN,
  }[kind]
  # Null and absent mean the default alike.
  scaling |= {name: float(rope[name]) for name in optional if rope.get(name)}
  return fields | {"rope_scaling": RopeScaling(**scaling)}


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
  if scaling is None:
    return None
  config = {"rope_type": scaling.kind, "factor": scaling.factor}
  if scaling.kind != "linear":
    config["original_max_position_embeddings"] = scaling.original_length
  if scaling.kind == "llama3":
    config["low_freq_factor"] = scaling.low_freq_factor
    config["high_freq_factor"] = scaling.high_freq_factor
  if scaling.kind == "yarn":
    config["type"] = "yarn"  # DeepSeek's own code reads this name.
    config |= {
      name: getattr(scaling, name) for name in _YARN if getattr(scaling, name)
    }
  return config


def _sliding_window(config: Mapping[str, Any], family_: str) -> int:
  """Returns the window of all layers, or 0."""
  window = config.get("sliding_window")
  if family_ == "mistral":
    return window or 0
  if family_ in ("llama", "deepseek_v3") or not window:
    return 0
  if not config.get("use_sliding_window", False):
    return 0
  # Qwen3-MoE's network, unlike the others', gives a window to all layers.
  first = config.get("max_window_layers", 0)
  if first and family_ != "qwen3_moe":
    if first < config["num_hidden_layers"]:
      raise ValueError(
        f"max_window_layers={first} of config.json is not supported: a sliding"
        " window is of all layers or of none."
      )
    return 0
  return window


def _dense_layers(config: Mapping[str, Any]) -> int:
  dense = config.get("mlp_only_layers") or []
  numbers = all(isinstance(layer, int) for layer in dense)
  if not numbers or sorted(dense) != list(range(len(dense))):
    raise ValueError(
      f"mlp_only_layers={dense} of config.json is not supported: dense layers"
      " must be the first ones."
    )
  return len(dense)
