"""Datasets: what is kept is what was made, and bad files are named."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from grpo_jax.data import datasets, recipes, text
from grpo_jax.data.sources import gsm8k, tasks
from grpo_jax.data.tokenizers import tokenizer

SMALL = dict(train_size=50, test_size=20)


@pytest.fixture
def load(tmp_path):
  return functools.partial(datasets.load, data_dir=tmp_path / "kept")


@pytest.fixture
def write(tmp_path):
  def write_lines(name, *lines):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)

  return write_lines


def line(question, answer, **more):
  return json.dumps({"question": question, "answer": answer, **more})


def recipe(records, key="key"):
  return recipes.Recipe(
    key=key,
    origin="a test",
    fields=("text",),
    splits=lambda _: {"train": records()},
    convert=str,
  )


def one_two():
  yield {"text": "one"}
  yield {"text": "two"}


# Built-in tasks.


@pytest.mark.parametrize("task", tasks.TASKS)
def test_kept_problems_are_those_that_were_made(load, task):
  for split, size in (("train", 50), ("test", 20)):
    made = tasks.problems(task, split, size=size, seed=3)
    assert load(task, split, seed=3, **SMALL) == made
    assert load(task, split, seed=3, **SMALL) == made, "read again"


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_kept_corpus_is_the_one_that_was_made(load, task):
  made = tasks.corpus(task, size=30, seed=1, template="Q:{question}\nA:")
  assert load(f"{task}_corpus", "train", size=30, seed=1) != list(made)
  made = tasks.corpus(
    task, size=30, seed=1, template="User: {question}\nAssistant:"
  )
  assert load(f"{task}_corpus", "train", size=30, seed=1) == list(made)


def test_another_mix_size_seed_or_template_is_another_corpus(load):
  options = [
    {},
    dict(mix={"facts": 0.0}),
    dict(seed=1),
    dict(template="bare"),
  ]
  corpora = [load("pair_sum_corpus", "train", size=40, **o) for o in options]
  assert len(set(map(tuple, corpora))) == len(options)
  assert len(load("pair_sum_corpus", "train", size=41)) == 41


def test_the_default_sizes_of_every_task_exist():
  for name, task in tasks.TASKS.items():
    tasks.problems(name, "train", size=task.train_size, seed=0)
    tasks.problems(name, "test", size=task.test_size, seed=0)


# Files of the user's.


def test_jsonl_problems_keep_their_text_and_order(load, write):
  path = write(
    "p.jsonl",
    line(" What is\n2+3? ", 5),
    "",
    line("數?", "四", more=[1]),
    line("half", 0.5),
  )
  problems = load("jsonl", "train", path=path, source="mine")
  assert [(p.question, p.answer) for p in problems] == [
    (" What is\n2+3? ", "5"),
    ("數?", "四"),
    ("half", "0.5"),
  ]
  assert all(p.source == "mine" and p.prompt == "" for p in problems)


def test_jsonl_fields_have_the_names_one_gives(load, write):
  path = write("p.jsonl", json.dumps({"problem": "a", "solution": "b"}))
  (problem,) = load(
    "jsonl", "train", path=path, question="problem", answer="solution"
  )
  assert problem[:2] == ("a", "b")


def test_other_columns_of_a_file_are_there_by_name(load, write):
  path = write("p.jsonl", line("a", 1, level=3, tags=["x"]), line("b", 2))
  problems = load("jsonl", "train", path=path)
  assert [p.columns for p in problems] == [{"level": 3, "tags": ["x"]}, {}]


def test_a_list_and_a_table_say_the_same_as_lines(load, write):
  rows = [("a, b", "1", "x"), ("c\n數", "2", "")]
  objects = [dict(question=q, answer=a, kind=k) for q, a, k in rows]
  paths = (
    write("p.jsonl", *map(json.dumps, objects)),
    write("p.json", json.dumps(objects)),
    write("p.csv", "question,kind,answer", '"a, b",x,1', '"c\n數",,2'),
  )
  for path in paths:
    problems = load("jsonl", "train", path=path)
    assert [(p.question, p.answer, p.columns["kind"]) for p in problems] == rows


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("p.json", '{"question": "a"}', r"p\.json: a list of JSON objects"),
    ("p.json", "[", r"p\.json: no valid JSON"),
    ("p.json", '[{"question": "a", "answer": 1}, 2]', r"record 2: a JSON obje"),
    ("p.csv", "question,answer\na,1\nb", r"p\.csv, line 3: as many cells"),
    ("p.csv", "question,answer\na,1,2", r"p\.csv, line 2: as many cells"),
    ("p.csv", "prompt,answer\na,1", r"no field 'question'; it has 'prompt'"),
    ("p.csv", "prompt,answer\na,1", r"Name yours with question=NAME\.$"),
    ("p.csv", "question,solution\na,1", r"Name yours with answer=NAME\.$"),
  ],
)
def test_what_is_wrong_with_a_list_or_a_table_is_named(
  load, write, name, text, message
):
  with pytest.raises(ValueError, match=message):
    load("jsonl", "train", path=write(name, text))


def test_a_file_of_its_own_is_the_test_split(load, write):
  options = dict(
    path=write("a.jsonl", line("a", 1)),
    test=write("b.csv", "question,answer", "b,2"),
  )
  for split, question in (("train", "a"), ("test", "b")):
    assert [p.question for p in load("jsonl", split, **options)] == [question]


def test_ways_to_hold_out_exclude_each_other(load, write, tmp_path):
  path = write("set/train.jsonl", line("a", 1))
  both = dict(test=path, test_share=0.5)
  with pytest.raises(ValueError, match="exclude each other"):
    load("jsonl", "train", path=path, **both)
  with pytest.raises(ValueError, match=r"test='.*' needs a file"):
    load("jsonl", "train", path=str(tmp_path / "set"), test=path)


def test_a_share_that_holds_no_question_is_named(load, write):
  path = write("p.jsonl", line("a", 1))
  with pytest.raises(ValueError, match=r"no question for the test split at te"):
    load("jsonl", "train", path=path, test_share=0.001)


def test_an_edited_file_is_another_dataset(load, write):
  for answer in ("1", "2", "1"):
    path = write("p.jsonl", line("a", answer))
    assert load("jsonl", "train", path=path)[0].answer == answer


def test_a_folder_holds_one_file_per_split(load, write, tmp_path):
  write("set/train.jsonl", line("a", 1), line("b", 2))
  write("set/test.jsonl", line("c", 3))
  path = str(tmp_path / "set")
  assert [p.question for p in load("jsonl", "train", path=path)] == ["a", "b"]
  assert [p.question for p in load("jsonl", "test", path=path)] == ["c"]


def test_a_test_share_puts_equal_questions_on_one_side(load, write):
  questions = [f"question {i % 100}" for i in range(300)]
  path = write("p.jsonl", *(line(q, i) for i, q in enumerate(questions)))
  split = {
    name: [p.question for p in load("jsonl", name, path=path, test_share=0.3)]
    for name in ("train", "test")
  }
  assert not set(split["train"]) & set(split["test"])
  assert sorted(split["train"] + split["test"]) == sorted(questions)
  assert 15 <= len(set(split["test"])) <= 45


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    ("{oops", r"p\.jsonl, line 2: no valid JSON"),
    ('["a"]', r"line 2: a JSON object is needed"),
    ('{"question": "a"}', r"line 2: no field 'answer'; it has 'question'"),
    (line("a", None), r"line 2: 'answer' must be text or a number, not None"),
    (line("a", True), r"line 2: 'answer' must be text or a number"),
    (line(" ", "b"), r"line 2: 'question' is empty"),
  ],
)
def test_a_bad_line_is_named_and_nothing_is_kept(load, write, bad, message):
  path = write("p.jsonl", line("a", "b"), bad)
  for _ in range(2):
    with pytest.raises(ValueError, match=message):
      load("jsonl", "train", path=path)
  path = write("p.jsonl", line("a", "b"))
  assert len(load("jsonl", "train", path=path)) == 1


def test_empty_and_missing_files_are_named(load, write, tmp_path):
  with pytest.raises(ValueError, match=r"empty\.jsonl has no records"):
    load("jsonl", "train", path=write("empty.jsonl"))
  with pytest.raises(FileNotFoundError, match="nowhere is not a file"):
    load("jsonl", "train", path=str(tmp_path / "nowhere"))
  (tmp_path / "folder").mkdir()
  with pytest.raises(FileNotFoundError, match=r"no train\.jsonl and no test"):
    load("jsonl", "train", path=str(tmp_path / "folder"))
  with pytest.raises(FileNotFoundError, match=r"holds no \.txt file"):
    load("text", "train", path=str(tmp_path / "folder"))


def test_text_that_is_not_utf8_is_named(load, tmp_path):
  path = tmp_path / "latin.jsonl"
  path.write_bytes(b'{"question": "caf\xe9", "answer": "1"}\n')
  with pytest.raises(ValueError, match=r"latin\.jsonl is not UTF-8"):
    load("jsonl", "train", path=str(path))


def test_paragraphs_or_files_are_documents(load, write, tmp_path):
  path = write("t/a.txt", "", "one", "  two", "", " ", "three")
  assert load("text", "train", path=path) == ["one\n  two", "three"]
  write("t/deep/b.txt", "four")
  write("t/ignored.md", "five")
  folder = str(tmp_path / "t")
  assert load("text", "train", path=folder) == [
    "one\n  two",
    "three",
    "four",
  ]
  assert load("text", "train", path=folder, unit="file") == [
    "\none\n  two\n\n \nthree\n",
    "four\n",
  ]


# Names and options.


@pytest.mark.parametrize(
  ("name", "split", "options", "message"),
  [
    ("pair_sm", "train", {}, "did you mean 'pair_sum'"),
    ("addition", "train", dict(sed=1), "no option 'sed'; did you mean 'seed'"),
    ("addition", "dev", SMALL, "no split 'dev', only train, test"),
    ("addition_corpus", "test", dict(size=5), "no split 'test', only train"),
    ("jsonl", "train", {}, "needs the option 'path'"),
    ("text", "train", dict(path="x", unit="word"), "paragraph, file"),
    ("addition", "train", dict(train_size=10**6), "1000000 were asked for"),
    ("pair_sum_corpus", "train", dict(mix={"fact": 1}), "mean 'facts'"),
    ("pair_sum_corpus", "train", dict(mix={"facts": 2.0}), r"in \[0, 1\]"),
    ("pair_sum_corpus", "train", dict(template="no"), "Template 'no'"),
  ],
)
def test_a_wrong_name_is_answered_in_one_sentence(
  load, name, split, options, message
):
  with pytest.raises(ValueError, match=message) as caught:
    load(name, split, **options)
  assert "\n" not in str(caught.value)


# GSM8K.


def test_gsm8k_is_read_from_a_folder(load, shared_data):
  path = str(shared_data / "gsm8k")
  train, test = (load("gsm8k", s, path=path) for s in ("train", "test"))
  assert (len(train), len(test)) == (7473, 1319)
  assert train[0].question.startswith("Natalia sold clips")
  assert train[0].answer == "72"
  for problem in train + test:
    int(problem.answer)  # Commas are gone.
    assert problem.source == "gsm8k"


def test_gsm8k_text_thinks_without_annotations_and_then_answers(
  load, shared_data
):
  path = str(shared_data / "gsm8k")
  documents = load("gsm8k_corpus", "train", path=path)
  assert len(documents) == 7473
  assert documents[0].endswith(
    "\nAssistant:<think>Natalia sold 48/2 = 24 clips in May.\nNatalia sold "
    "48+24 = 72 clips altogether in April and May.</think><answer>72</answer>"
  )
  assert not any("<<" in d or "####" in d for d in documents)
  problems = load("gsm8k", "train", path=path)
  for document, problem in zip(documents, problems, strict=True):
    assert document.startswith(f"User: {problem.question}\nAssistant:<think>")
    assert document.endswith(f"</think><answer>{problem.answer}</answer>")


def test_math_is_read_from_a_folder_and_tested_on_other_problems(
  load, shared_data
):
  path = str(shared_data / "math")
  train, test = (load("math", s, path=path) for s in ("train", "test"))
  questions = [[p.question.strip() for p in part] for part in (train, test)]
  assert len(test) == 500 and 7490 <= len(train) < 7500
  assert len(set(questions[0])) == len(train)
  assert not set(questions[0]) & set(questions[1])
  assert {p.source for p in train} == {"math"}
  assert all(p.answer for p in (*train, *test))
  assert test[0].answer == r"\left( 3, \frac{\pi}{2} \right)"


def test_math_says_where_its_files_should_be(load, monkeypatch):
  monkeypatch.delenv("GRPO_JAX_DATA", raising=False)
  with pytest.raises(FileNotFoundError, match="option path, or set GRPO_JAX"):
    load("math", "train")


def test_gsm8k_lies_beside_other_data_where_the_environment_says(
  load, write, tmp_path, monkeypatch
):
  for split in ("train", "test"):
    write(f"data/gsm8k/{split}.jsonl", line("a", "b <<1+1=2>>\n#### -1,234"))
  monkeypatch.setenv("GRPO_JAX_DATA", str(tmp_path / "data"))
  assert load("gsm8k", "train")[0].answer == "-1234"


def test_a_gsm8k_line_without_an_answer_is_named(load, write, tmp_path):
  for split in ("train", "test"):
    write(f"g/{split}.jsonl", line("a", "no mark"))
  with pytest.raises(ValueError, match="line 1: the answer has no '####'"):
    load("gsm8k", "train", path=str(tmp_path / "g"))


@pytest.fixture
def publisher(write, tmp_path, monkeypatch):
  """A server that publishes two small files where GSM8K is looked for."""
  hashes = {}
  for split in ("train", "test"):
    file = write(f"web/{split}.jsonl", line(split, "so\n#### 7"))
    with open(file, "rb") as content:
      hashes[split] = hashlib.sha256(content.read()).hexdigest()
  handler = functools.partial(
    http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web"
  )
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}/{{split}}.jsonl"
  monkeypatch.setattr(gsm8k, "_URL", url)
  monkeypatch.setattr(gsm8k, "_SHA256", hashes)
  monkeypatch.delenv("GRPO_JAX_DATA", raising=False)
  yield hashes
  server.shutdown()
  server.server_close()


def test_gsm8k_is_downloaded_from_its_publisher(load, publisher):
  assert load("gsm8k", "test")[0][:2] == ("test", "7")
  assert load("gsm8k", "train")[0][:2] == ("train", "7")


def test_a_download_that_was_changed_is_refused(load, publisher):
  publisher["test"] = "0" * 64
  with pytest.raises(ConnectionError, match=r"test\.jsonl gave another file"):
    load("gsm8k", "train")


def test_without_a_network_one_learns_at_once_what_to_do(load, monkeypatch):
  monkeypatch.delenv("GRPO_JAX_DATA", raising=False)
  monkeypatch.setattr(gsm8k, "_URL", "http://127.0.0.1:9/{split}")
  with pytest.raises(
    ConnectionError, match="option path, or set GRPO_JAX_DATA"
  ):
    load("gsm8k", "train")


# Keeping.


def test_an_interrupted_preparation_is_done_again(load, monkeypatch):
  def interrupted():
    yield {"text": "half"}
    raise KeyboardInterrupt

  monkeypatch.setitem(datasets.DATASETS, "x", lambda: recipe(interrupted))
  with pytest.raises(KeyboardInterrupt):
    load("x", "train")
  monkeypatch.setitem(datasets.DATASETS, "x", lambda: recipe(one_two))
  assert load("x", "train") == ["one", "two"]


def test_a_killed_preparation_is_done_again(load, monkeypatch, tmp_path):
  program = """
import os, sys
from grpo_jax.data import datasets, recipes
def records():
  yield {"text": "half"}
  os._exit(9)
datasets.DATASETS["x"] = lambda: recipes.Recipe(
  "key", "a test", ("text",), lambda _: {"train": records()}, str)
datasets.load("x", "train", data_dir=sys.argv[1])
"""
  killed = subprocess.run(
    [sys.executable, "-c", program, tmp_path / "kept"],
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
  )
  assert killed.returncode == 9, killed.stderr
  left = [p.name for p in (tmp_path / "kept" / "x" / "key").iterdir()]
  assert left and left[0].startswith("incomplete")
  monkeypatch.setitem(datasets.DATASETS, "x", lambda: recipe(one_two))
  assert load("x", "train") == ["one", "two"]


def test_whoever_prepares_second_reads_what_the_first_has_kept(
  load, monkeypatch
):
  # In the middle of one preparation another one begins and ends.
  second = []

  def records():
    yield {"text": "one"}
    if not second:
      second.append("begun")
      second.extend(load("x", "train"))
    yield {"text": "two"}

  monkeypatch.setitem(datasets.DATASETS, "x", lambda: recipe(records))
  assert load("x", "train") == ["one", "two"]
  assert second == ["begun", "one", "two"]


def test_large_datasets_are_read_record_by_record(load, monkeypatch):
  monkeypatch.setattr(datasets, "_IN_MEMORY", 0)
  problems = load("addition", "train", **SMALL)
  assert not isinstance(problems, list)
  made = tasks.problems("addition", "train", size=50, seed=0)
  assert list(problems) == made and problems[-1] == made[-1]
  with pytest.raises(IndexError):
    problems[50]


def test_packed_text_reads_kept_documents_either_way(load, monkeypatch):
  def first_batch():
    documents = load("addition_corpus", "train", size=40)
    batches = text.TextSource(
      documents, tokenizer.ByteTokenizer(), num_rows=2, row_length=64, seed=0
    )
    return next(batches).tokens

  in_memory = first_batch()
  monkeypatch.setattr(datasets, "_IN_MEMORY", 0)
  assert (first_batch() == in_memory).all()


def test_preparing_prints_nothing(load, capfd):
  load("addition", "train", **SMALL)
  captured = capfd.readouterr()
  assert captured.out == captured.err == ""
