r"""A small base model from text; `r1_zero.py` by itself makes one like it.

From the built-in corpus, or from your own text files:

  python -m grpo_jax.main --config=experiments/pretrain.py
  python -m grpo_jax.main --config=experiments/pretrain.py:text=FOLDER \
    --workdir=runs/my_base

Then `--config=experiments/r1_zero.py:base=runs/my_base` starts from it.
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(arg, text="")
  c = configs.pretrain()
  if arg.text:
    c.data = dict(name="text", split="train", path=arg.text)
    c.tokenizer.vocab_size = 4096
    c.tokenizer.byte_fallback = True  # The text may lack a character.
    c.batch.row_length = 512
    c.batch.num_rows = 8
  return c
