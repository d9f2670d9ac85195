"""Directories of Hugging Face as others have them: tokenizers, and a model."""

import json
import shutil

import helpers
import tokenizers

from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import hf

# As Qwen's, in short; a base of that family stops at another token.
QWEN = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def write_small(path, template=QWEN, eos="<|endoftext|>"):
  """A tokenizer of bytes and three special tokens, as a base has it."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {c: i for i, c in enumerate(alphabet)}
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
  content = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {**level, "use_regex": False},
    "decoder": level,
    "model": {"type": "BPE", "vocab": vocab, "merges": []},
  }
  added = {
    str(256 + i): {"content": text, "special": True}
    for i, text in enumerate(TOKENS)
  }
  path.mkdir(parents=True)
  (path / "tokenizer.json").write_text(json.dumps(content))
  (path / "tokenizer_config.json").write_text(
    json.dumps({"eos_token": eos, "added_tokens_decoder": added})
  )
  (path / "generation_config.json").write_text('{"eos_token_id": 256}')
  (path / "chat_template.jinja").write_text(template)
  return path


def write_real(path, shared, name):
  """The real tokenizer of a family, with a base's stop token and a template."""
  qwen = not name.startswith("deepseek")
  folder = shared / "tokenizers" / ("qwen" if qwen else "deepseek_r1")
  path.mkdir(parents=True)
  for file in folder.iterdir():
    shutil.copyfile(file, path / file.name)
  config = json.loads((path / "tokenizer_config.json").read_text())
  config.pop("chat_template", None)
  if qwen:
    config["eos_token"] = "<|endoftext|>"
    special = json.loads((path / "special_tokens_map.json").read_text())
    special["eos_token"]["content"] = "<|endoftext|>"
    (path / "special_tokens_map.json").write_text(json.dumps(special))
    (path / "generation_config.json").write_text('{"eos_token_id": 151643}')
  (path / "tokenizer_config.json").write_text(json.dumps(config))
  source = (shared / "chat_templates" / f"{name}.jinja").read_text()
  (path / "chat_template.jinja").write_text(source)
  return path


def write_model(path):
  """A random model beside a tokenizer."""
  size = tokenizer.load(path).vocab_size
  cfg = helpers.tiny(
    vocab_size=size, num_layers=2, d_model=32, head_dim=8, qk_norm=False
  )
  params = helpers.make_params(cfg)
  hf.save(path / "weights", cfg, params)
  for file in (path / "weights").iterdir():
    file.rename(path / file.name)
  (path / "weights").rmdir()
  return path
