"""Which models can be, published ones among them."""

import json

import helpers
import pytest

from grpo_jax.models import config, params

BILLIONS = {  # Of parameters, as the model cards say.
  "Qwen2.5-1.5B": 1.54,
  "Qwen2.5-7B": 7.62,
  "Qwen2.5-32B": 32.8,
  "Qwen3-0.6B": 0.596,
  "Qwen3-8B": 8.19,
  "Meta-Llama-3.1-8B": 8.03,
}


@pytest.mark.parametrize("model", BILLIONS)
def test_qwen_and_llama_fit_and_have_the_parameters_of_their_cards(
  model, shared_data
):
  path = shared_data / "configs" / f"{model}.json"
  there = json.loads(path.read_text())
  heads = there["num_attention_heads"]
  cfg = config.ModelConfig(
    vocab_size=there["vocab_size"],
    num_layers=there["num_hidden_layers"],
    d_model=there["hidden_size"],
    num_heads=heads,
    num_kv_heads=there["num_key_value_heads"],
    head_dim=there.get("head_dim", there["hidden_size"] // heads),
    d_ff=there["intermediate_size"],
    rope_theta=float(there["rope_theta"]),
    norm_eps=there["rms_norm_eps"],
    qkv_bias=there["model_type"] == "qwen2",
    qk_norm=there["model_type"] == "qwen3",
    tied_head=there["tie_word_embeddings"],
  )
  count = params.count(params.param_specs(cfg))
  assert count / 1e9 == pytest.approx(BILLIONS[model], rel=0.005)


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(num_heads=3), "num_heads=3 must divide by num_kv_heads=2"),
    (dict(head_dim=5), "head_dim=5 must be even"),
    (dict(dtype="float16"), "dtype='float16' must be one of"),
    (dict(remat="some"), "remat='some' must be one of"),
    (dict(num_layers=0), "num_layers=0 must be at least 1"),
    (dict(head_chunk=0), "head_chunk=0 must be at least 1"),
    (dict(num_kv_heads=0), "num_kv_heads=0 must be at least 1"),
    (dict(sliding_window=-1), "sliding_window=-1 must be at least 0"),
    (dict(router="top"), "router='top' must be one of"),
    (dict(value_dim=4), "value_dim=4 is of latent attention"),
    (dict(latent_dim=8, qkv_bias=False), "needs value_dim"),
    (dict(latent_dim=8, value_dim=4), "rope_dim=0 must be even, at least 2"),
    (
      dict(latent_dim=8, value_dim=4, rope_dim=2),
      "num_kv_heads=2 must equal num_heads=4",
    ),
    (
      dict(latent_dim=8, value_dim=4, rope_dim=2, num_kv_heads=4),
      "neither qkv_bias nor qk_norm",
    ),
    (dict(d_expert=8), "d_expert=8 is of a mixture of experts"),
    (dict(num_experts=4), "needs d_expert"),
    (
      dict(num_experts=4, d_expert=8, experts_per_token=5),
      "experts_per_token=5 must be between 1 and the 4 experts",
    ),
    (
      dict(num_experts=4, d_expert=8, num_dense_layers=2),
      "num_dense_layers=2 must be below num_layers=2",
    ),
    (
      dict(num_experts=4, d_expert=8, router_groups=2),
      "router_groups=2 needs router='sigmoid'",
    ),
    (
      dict(num_experts=4, d_expert=8, router_top_groups=2),
      "router_top_groups=2 must not exceed router_groups=1",
    ),
    (dict(rope_scaling=dict(kind="ntk", factor=2.0)), "kind='ntk' must be one"),
    (
      dict(rope_scaling=dict(kind="linear", factor=0.5)),
      "rope_scaling.factor=0.5 must be at least 1",
    ),
    (
      dict(rope_scaling=dict(kind="yarn", factor=2.0)),
      "rope_scaling.original_length=0 must be",
    ),
  ],
)
def test_a_model_that_cannot_be_is_refused_in_one_sentence(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    helpers.tiny(**changes)
