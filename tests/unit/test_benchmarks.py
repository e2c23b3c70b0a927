"""Benchmarks as data: their protocols, their samples, and what is refused before a model is asked anything."""

import base64
import json
import pickle
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from r1async.answers import response_of
from r1async.benchmarks import FORMATS, load_benchmark, longest_of, names, with_protocol
from r1async.config import Config, ConfigError, ModelConfig, RewardConfig
from r1async.config_eval import EvalConfig, ProtocolConfig
from r1async.evaluation.benchmark import ask
from r1async.evaluation.rows import FORMATS as READERS
from r1async.evaluation.rows import RowError, read_problem
from r1async.reward_pools import Router
from r1async.rewards.compose import Grader
from r1async.swe.samples import make_samples
from r1async.tasks.meta import Question
from r1async.types import Completion

from tests.tiny_models import byte_tokenizer

SAMPLED = [name for name in names() if name != "swebench_verified"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    byte_tokenizer().save_pretrained(folder)
    return folder


def config_of(model_dir: Path, name: str, data: str = "sample", **protocol) -> Config:
    made = Config(
        steps=0,
        model=ModelConfig(path=str(model_dir)),
        eval=EvalConfig(prompts=0, benchmarks=(name,), data={Path(name).stem: data} if data else {},
                        protocol=ProtocolConfig(**protocol)),
    )  # fmt: skip
    return replace(made, data=replace(made.data, task="none", template="none"))


@pytest.mark.parametrize(
    ("name", "k"), [("aime2024", 64), ("math500", 4), ("gpqa_diamond", 8), ("livecodebench", 16), ("codeforces", 8)]
)
def test_defaults_are_those_of_r1(name, k):
    made = load_benchmark(name)
    assert (made.k, made.temperature, made.top_p, made.max_tokens) == (k, 0.6, 0.95, 32_768)
    assert "2501.12948" in made.source


def test_all_benchmarks_of_the_issue_come_along():
    assert names() == [
        "aime2024", "codeforces", "gpqa_diamond", "gsm8k", "ifeval", "livecodebench", "math500", "mmlu", "mmlu_pro",
        "swebench_verified",
    ]  # fmt: skip


def test_every_format_has_a_reader():
    assert set(FORMATS) == {*READERS, "swe"}  # which tasks.swe reads


@pytest.mark.parametrize("name", SAMPLED)
def test_sample_is_a_dozen_problems_with_whole_prompts(name, model_dir):
    asked = ask(config_of(model_dir, name), name)
    assert len(asked.problems) >= 12
    assert len({problem.id for problem in asked.problems}) == len(asked.problems)
    for problem, prompt in zip(asked.problems, asked.prompts, strict=True):
        assert problem.fields["question"].splitlines()[0] in prompt.text
        assert "{question}" not in prompt.text
        assert "{options}" not in prompt.text
        assert prompt.extra["domain"] == f"benchmark:{asked.benchmark.grader}"
    assert asked.digest == ask(config_of(model_dir, name), name).digest


@pytest.mark.parametrize("name", ["aime2024", "math500", "gsm8k", "gpqa_diamond", "mmlu", "mmlu_pro"])
def test_reference_is_right_and_another_is_wrong(name, model_dir):
    asked = ask(config_of(model_dir, name), name)
    grader = Grader(config_of(model_dir, name).resolved_reward, lambda: None)
    for i, prompt in enumerate(asked.prompts):
        other = asked.prompts[i - 1].answer if asked.prompts[i - 1].answer != prompt.answer else "Z"
        for answer, score in ((prompt.answer, 1.0), (other, 0.0)):
            shown = f"Answer: {answer}" if asked.benchmark.grader == "choice" else f"\\boxed{{{answer}}}"
            question = Question(text=prompt.text, answer=prompt.answer, extra=prompt.extra)
            completion = Completion(text=f"So.\n{shown}", num_tokens=9, finish="stop")
            assert grader.grade(question, completion, prompt.extra["domain"]).total == score, (prompt.text, answer)


@pytest.mark.parametrize(
    ("domain", "answer", "extra", "says"),
    [
        ("choice", "A", {}, "column options"),
        ("choice", "E", {"options": '["x", "y"]'}, "one of the first 2 letters"),
        ("choice", "A", {"options": "{}"}, "must be a list of texts"),
        ("ifeval", "", {"instructions": '{"names": ["x"], "arguments": [{}]}'}, "not one of IFEval's"),
        ("ifeval", "", {"instructions": "[]"}, "must be an object"),
    ],
)
def test_problem_that_cannot_be_graded_abstains(domain, answer, extra, says):
    grader = Grader(RewardConfig(weights={domain: 1.0}), lambda: None)
    question = Question(text="?", answer=answer, extra=extra)
    verdict = grader.grade(question, Completion(text="Answer: A", num_tokens=1, finish="stop"))
    assert (verdict.total, verdict.status) == (None, "ungradable")
    assert says in verdict.detail


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("plain", "plain"),
        ("<think>t</think> said ", "said"),
        ("t</think>said", "said"),
        ("<think>a</think><answer>b</answer>", "b"),
        ("<think>never ends", ""),
        ("<think>a</think>b<think>c</think>d", "d"),
    ],
)
def test_response_is_what_comes_after_the_thought(text, response):
    assert response_of(text) == response


def test_options_are_shuffled_by_seed_and_the_right_one_goes_everywhere(model_dir):
    first = [p.answer for p in ask(config_of(model_dir, "gpqa_diamond"), "gpqa_diamond").prompts]
    again = [p.answer for p in ask(config_of(model_dir, "gpqa_diamond"), "gpqa_diamond").prompts]
    other = [p.answer for p in ask(config_of(model_dir, "gpqa_diamond", seed=1), "gpqa_diamond").prompts]
    assert first == again != other
    columns = load_benchmark("gpqa_diamond").columns
    row = {"Question": "?", "Correct Answer": "r", **{f"Incorrect Answer {i}": f"w{i}" for i in (1, 2, 3)}}
    letters = Counter(read_problem("choices", columns, row, index=i, seed=0).answer for i in range(400))
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 70  # 100 each, give or take 3.5 standard deviations


def test_protocol_of_the_run_goes_before_the_benchmarks():
    made = with_protocol(load_benchmark("aime2024"), ProtocolConfig(samples=2, temperature=0.0, max_tokens=99))
    assert (made.k, made.sampling.greedy, made.sampling.max_tokens, made.top_p) == (2, True, 99, 0.95)


def test_engines_get_room_for_the_longest_request(model_dir):
    config = config_of(model_dir, "aime2024", max_prompt_tokens=1000)
    assert longest_of(config) == 33_768
    assert longest_of(replace(config, eval=EvalConfig())) == 0


def test_problems_are_graded_in_their_graders_pool_whatever_the_run_is_rewarded_for(model_dir):
    config = config_of(model_dir, "livecodebench")
    prompt = ask(config, "livecodebench").prompts[0]
    assert Router(config).line(prompt.extra) == "code"
    assert Router(config).line({}) == "rules"
    assert config.scoring_deadline_s == (10.0 + 60.0 + 30.0) * 2
    plain = config_of(model_dir, "gpqa_diamond")
    assert Router(plain).line(ask(plain, "gpqa_diamond").prompts[0].extra) == "rules"
    assert plain.scoring_deadline_s == 10.0 * 2
    assert plain.reward.domains == {}


@pytest.mark.parametrize("data", ["", "sample"])
def test_swe_wants_instances_and_repositories_on_this_machine(model_dir, data):
    with pytest.raises(ConfigError, match=r"must be a JSONL file of instances, and reward.swe.repos"):
        ask(config_of(model_dir, "swebench_verified", data=data), "swebench_verified")


def test_swe_instances_are_asked_in_one_shot_and_graded_in_their_own_pool(model_dir, tmp_path):
    instances = make_samples(tmp_path / "swe")
    config = config_of(model_dir, "swebench_verified", data=str(instances), max_prompt_tokens=20_000)
    swe = replace(config.reward.swe, repos=str(tmp_path / "swe" / "repos"))
    config = replace(config, reward=replace(config.reward, swe=swe))
    asked = ask(config, "swebench_verified")
    assert len(asked.problems) == 3
    assert asked.problems[0].fields["question"].strip() == asked.prompts[0].text
    assert asked.prompts[0].extra["instance_id"] == asked.problems[0].id
    assert Router(config).line(asked.prompts[0].extra) == "swe"
    assert config.resolved_reward.swe.instances == str(instances)


def test_without_a_hub_the_message_says_what_to_set(model_dir, monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConfigError, match=r"aime_2024/train cannot be had .*eval.data.aime2024=FILE"):
        ask(config_of(model_dir, "aime2024", data=""), "aime2024")


def test_prompt_that_is_too_long_is_refused(model_dir):
    with pytest.raises(ConfigError, match=r"problem 1: its prompt has \d+ tokens, eval.protocol.max_prompt_tokens"):
        ask(config_of(model_dir, "aime2024", max_prompt_tokens=50), "aime2024")


def test_rows_come_from_parquet_folders_and_saved_data_sets_too(model_dir, tmp_path):
    import datasets

    rows = [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}, {"question": "2 + 2?", "answer": "#### 4"}]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("rows.parquet", "saved", "rows.jsonl"):
        asked = ask(config_of(model_dir, "gsm8k", data=str(tmp_path / name)), "gsm8k")
        assert [prompt.answer for prompt in asked.prompts] == ["2", "4"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "?"}, "row 1: no 'answer'"),
        ({"question": "?", "answer": "4"}, "has no '####'"),
        ({"question": "?", "answer": "#### "}, "is empty"),
        ({"question": ["?"], "answer": "#### 4"}, "must be a text, got list"),
    ],
)
def test_row_that_is_not_of_the_data_set_is_named(model_dir, tmp_path, row, says):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=says):
        ask(config_of(model_dir, "gsm8k", data=str(tmp_path / "rows.jsonl")), "gsm8k")


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def lcb_row(private: str) -> dict:
    public = json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}])
    return {
        "question_content": "?", "question_id": "x", "starter_code": "", "metadata": "{}",
        "public_test_cases": public, "private_test_cases": private,
    }  # fmt: skip


def test_private_tests_are_read_without_unpickling():
    private = packed(json.dumps([{"input": "3", "output": "4"}]))
    problem = read_problem("livecodebench", load_benchmark("livecodebench").columns, lcb_row(private), index=0, seed=0)
    tests = json.loads(problem.extra["problem"])["tests"]
    assert tests == [{"input": "1", "output": "2"}, {"input": "3", "output": "4"}]


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize("private", [packed(Evil()), packed(["a", "b"]), "not packed", packed(b"bytes")])
def test_packed_tests_that_are_no_text_are_refused_and_nothing_runs(private, capsys):
    with pytest.raises(RowError):
        read_problem("livecodebench", load_benchmark("livecodebench").columns, lcb_row(private), index=0, seed=0)
    assert "ran" not in capsys.readouterr().out


def test_rows_outside_of_the_window_are_left_out(model_dir, tmp_path):
    rows = [{**lcb_row(""), "contest_date": date} for date in ("2024-07-31T00:00", "2024-08-01T00:00", "2025-02-01")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        len(ask(config_of(model_dir, "livecodebench", data=str(tmp_path / "rows.jsonl")), "livecodebench").problems)
        == 1
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 0}, "k must be 1 to"),
        ({"grader": "guess"}, "grader must be one of"),
        ({"format": "table"}, "format must be one of"),
        ({"kk": 4}, "unknown key kk"),
        ({"hub": {"file": "x"}}, "hub must have path"),
        ({"only": {"date": "2024"}}, r"only.date must be \[first, end\]"),
        ({"headline": "elo"}, "headline must be one of"),
    ],
)
def test_own_benchmark_with_a_mistake_is_refused(tmp_path, change, says):
    tree = {
        "title": "T",
        "source": "S",
        "format": "plain",
        "columns": {},
        "prompt": "{question}",
        "grader": "math",
        "k": 1,
    }
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({**tree, **change}))
    with pytest.raises(ConfigError, match=says):
        load_benchmark(str(path))


def test_own_benchmark_is_asked_like_the_others(model_dir, tmp_path):
    tree = {
        "title": "Own", "source": "mine", "format": "plain", "columns": {"question": "q", "answer": "a"},
        "prompt": "Work out {question} in \\boxed{}", "grader": "math", "k": 2,
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps(tree))
    (tmp_path / "rows.jsonl").write_text('{"q": "1 + {answer}", "a": 3}')
    name = str(tmp_path / "own.yaml")
    asked = ask(config_of(model_dir, name, data=str(tmp_path / "rows.jsonl")), name)
    assert asked.prompts[0].text == "Work out 1 + {answer} in \\boxed{}"  # nothing of the row is a template
    assert asked.prompts[0].answer == "3"


def test_unknown_benchmark_names_those_there_are():
    with pytest.raises(ConfigError, match="no benchmark 'aime'; there are aime2024"):
        load_benchmark("aime")
