"""Prompts: exact epochs, steps by random access, padding from lengths."""

import collections

import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.data import prompts
from grpo_jax.data.sources import tasks
from grpo_jax.data.tokenizers import tokenizer

TOKENIZER = tokenizer.ByteTokenizer(tasks.TASKS["pair_sum"].symbols)
PLAIN = prompts.TEMPLATES["plain"]


def problems(count):
  return [types.Problem(f"q{i}", str(i), "any", "") for i in range(count)]


def source(count, *, num_prompts=4, seed=0, **options):
  return prompts.PromptSource(
    problems(count),
    TOKENIZER,
    PLAIN,
    num_prompts=num_prompts,
    prompt_slots=options.pop("prompt_slots", 24),
    seed=seed,
  )


def test_every_problem_comes_exactly_once_in_each_epoch():
  batches = source(22, num_prompts=4)
  stream = [p.question for step in range(33) for p in batches(step)[1]]
  orders = [stream[i : i + 22] for i in range(0, len(stream), 22)]
  assert len(orders) == 6
  every = collections.Counter(p.question for p in problems(22))
  assert all(collections.Counter(order) == every for order in orders)
  assert len(set(map(tuple, orders))) == 6, "each epoch has its own order"


def test_a_step_is_the_same_however_one_gets_there():
  walked = source(10)
  in_order = [walked(step) for step in range(12)]
  for step in (11, 3, 0, 7):
    batch, chosen = source(10)(step)
    assert chosen == in_order[step][1]
    np.testing.assert_array_equal(batch.tokens, in_order[step][0].tokens)


def test_another_seed_is_another_order():
  assert source(50, seed=0)(0)[1] != source(50, seed=1)(0)[1]


def test_prompts_are_the_filled_template_after_bos_on_the_right():
  batch, chosen = source(12)(0)
  assert batch.tokens.shape == batch.mask.shape == (4, 24)
  for tokens, mask, problem in zip(
    batch.tokens, batch.mask, chosen, strict=True
  ):
    assert problem.prompt == f"User: {problem.question}\nAssistant:"
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode(problem.prompt)]
    assert tokens[mask].tolist() == ids
    assert mask.tolist() == [False] * (24 - len(ids)) + [True] * len(ids)
    assert (tokens[~mask] == TOKENIZER.pad_id).all()


def test_the_mask_comes_from_lengths_and_not_from_the_pad_token():
  ids = np.asarray([TOKENIZER.pad_id, 7, TOKENIZER.pad_id], np.int32)
  batch = prompts.pad_prompts([ids], TOKENIZER, 5)
  assert batch.mask.tolist() == [[False, False, True, True, True]]


def test_a_prompt_starts_without_bos_if_the_tokenizer_has_none():
  no_bos = tokenizer.ByteTokenizer()
  no_bos.bos_id = None
  (ids,) = prompts.encode_prompts(["ab"], no_bos, 2)
  assert no_bos.decode(ids) == "ab" and len(ids) == 2


def test_texts_and_their_ids_make_the_same_batch():
  texts = ["a", "bcd"]
  ids = prompts.encode_prompts(texts, TOKENIZER, 6)
  first = prompts.pad_prompts(texts, TOKENIZER, 6)
  second = prompts.pad_prompts(ids, TOKENIZER, 6)
  np.testing.assert_array_equal(first.tokens, second.tokens)
  np.testing.assert_array_equal(first.mask, second.mask)


def test_prompts_longer_than_their_slots_are_left_out_and_counted():
  long = types.Problem("a long question", "1", "any", "")
  mixed = [long, *problems(3), long]
  lines = []
  batches = prompts.PromptSource(
    mixed,
    TOKENIZER,
    PLAIN,
    num_prompts=3,
    prompt_slots=10,
    seed=0,
    tell=lines.append,
  )
  assert {p.question for p in batches(0)[1]} == {"q0", "q1", "q2"}
  assert batches.steps_per_epoch == 1
  assert lines == [
    "Left out because longer than prompt_slots=10: 2 of 5 prompts; the longest"
    " has 20 tokens."
  ]


def test_where_all_prompts_are_too_long_the_shortest_is_named():
  long = [
    types.Problem("a long question" + "?" * n, "1", "any", "") for n in (4, 0)
  ]
  with pytest.raises(
    ValueError,
    match=r"'User: a long question.*has 20 tokens.*prompt_slots=10; the others",
  ):
    prompts.PromptSource(
      long, TOKENIZER, PLAIN, num_prompts=1, prompt_slots=10, seed=0
    )


def test_no_problems_is_an_error():
  with pytest.raises(ValueError, match="no problems"):
    source(0)


def test_epochs_and_the_longest_prompt_are_known():
  assert source(22, num_prompts=4).steps_per_epoch == 5.5
  assert source(22).longest == 1 + len(
    TOKENIZER.encode("User: q10\nAssistant:")
  )


def test_a_template_is_read_by_name_or_from_a_file(tmp_path):
  assert prompts.read_template("r1_zero") == prompts.TEMPLATES["r1_zero"]
  file = tmp_path / "mine.txt"
  file.write_text("Q: {question} {not a field}\nA:")
  filled = prompts.fill(prompts.read_template(str(file)), problems(1)[0])
  assert filled.prompt == "Q: q0 {not a field}\nA:"


def test_a_bad_template_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"'nope' is neither a file nor one of"):
    prompts.read_template("nope")
  (tmp_path / "t.txt").write_text("no field")
  with pytest.raises(ValueError, match=r"no \{question\}"):
    prompts.read_template(str(tmp_path / "t.txt"))


@pytest.mark.parametrize("name", prompts.TEMPLATES)
def test_every_template_holds_the_question_once(name):
  assert prompts.TEMPLATES[name].count("{question}") == 1


def test_the_template_of_r1_zero_reads_as_in_the_paper():
  problem = types.Problem("What is 1+1?", "2", "any", "")
  prompt = prompts.fill(prompts.TEMPLATES["r1_zero"], problem).prompt
  assert prompt.startswith("A conversation between User and Assistant. The")
  assert prompt.endswith(
    "i.e., <think> reasoning process here </think> <answer> answer here"
    " </answer>. User: What is 1+1?. Assistant:"
  )


def test_a_chat_template_asks_as_its_author_does(tmp_path):
  tokenizer.ByteTokenizer().save(tmp_path)
  (tmp_path / "chat_template.jinja").write_text(
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
  )
  tok = tokenizer.load(tmp_path)
  template = prompts.read_template("chat", chat_too=True)
  (problem,), (ids,) = prompts.ask(problems(1), template, tok, 99)
  text = f"[user]{problem.question}[assistant]"
  assert problem.prompt == f"<s>{text}"
  assert ids.tolist() == [tok.bos_id, *tok.encode(text)]
  with pytest.raises(ValueError, match="prompt_slots=4"):
    prompts.ask(problems(1), template, tok, 4)


def test_a_chat_template_that_is_not_there_or_not_wanted_is_an_error():
  template = prompts.read_template("chat", chat_too=True)
  with pytest.raises(ValueError, match="has no chat template"):
    prompts.ask(problems(1), template, TOKENIZER, 99)
  with pytest.raises(ValueError, match="'chat' is neither a file nor one of"):
    prompts.read_template("chat")


def test_the_next_turn_is_the_word_before_the_question():
  turns = {name: prompts.next_turn(t) for name, t in prompts.TEMPLATES.items()}
  assert turns["plain"] == turns["r1_zero"] == "User:"
  assert turns["bare"] == turns["detailed"] == ""
  assert prompts.next_turn(prompts.CHAT) == ""


def test_worked_examples_are_turns_before_the_question():
  shots = [prompts.Shot("1+1=?", "<think>easy</think><answer>2</answer>")]
  template = prompts.TEMPLATES["plain"]
  (asked,), _ = prompts.ask(problems(1), template, TOKENIZER, 256, shots=shots)
  assert asked.prompt == (
    "User: 1+1=?\nAssistant:<think>easy</think><answer>2</answer>\n"
    + template.replace("{question}", asked.question)
  )
  opened = prompts.TEMPLATES["plain_thinking"]
  (asked,), _ = prompts.ask(problems(1), opened, TOKENIZER, 256, shots=shots)
  assert asked.prompt.count("<think>") == 2
  assert asked.prompt.startswith("User: 1+1=?\nAssistant:<think>easy</think>")
