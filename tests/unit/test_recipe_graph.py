"""Recipes: what is read from the file, in which order stages come, and what makes a key."""

import os
from pathlib import Path

import pytest
from r1async.config import ConfigError
from r1async.recipes.digests import digests
from r1async.recipes.graph import Recipe, load_recipe
from r1async.recipes.plan import _sources, begin, check, finish, forget, plan
from r1async.recipes.runner import Selection, select
from r1async.tasks.file import digest_of

NUMBER = 'make: "tests.recipe_steps:number", outputs: {out: number.txt}'
CHAIN = f"""
name: chain
stages:
  c: {{{NUMBER}, set: {{value: 3, plus: "${{b.out}}"}}}}
  a: {{{NUMBER}, set: {{value: 1}}}}
  b: {{{NUMBER}, set: {{value: 2, plus: "${{a.out}}"}}}}
  alone: {{{NUMBER}, set: {{value: 9}}}}
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, [f"folder={tmp_path / 'out'}", *overrides])


def keys(tmp_path: Path, text: str, *overrides: str) -> dict[str, str]:
    return {name: job.key for name, job in plan(read(tmp_path, text, *overrides)).items()}


def test_stages_come_after_what_they_need_and_else_as_written(tmp_path):
    assert list(read(tmp_path, CHAIN).stages) == ["a", "b", "c", "alone"]


def test_a_changed_setting_changes_the_keys_of_what_depends_on_it_alone(tmp_path):
    before, after = keys(tmp_path, CHAIN), keys(tmp_path, CHAIN, "b.value=5")
    assert {name for name in before if before[name] != after[name]} == {"b", "c"}
    assert keys(tmp_path, CHAIN, "b.value=2") == before


def test_the_seed_changes_only_what_mentions_it(tmp_path):
    text = CHAIN.replace("value: 2", 'value: "${seed}"')
    before, after = keys(tmp_path, text), keys(tmp_path, text, "seed=1")
    assert {name for name in before if before[name] != after[name]} == {"b", "c"}
    assert plan(read(tmp_path, text, "seed=7"))["b"].settings["value"] == 7


def test_inputs_count_by_content(tmp_path):
    text = f"inputs: {{n: {tmp_path}/n.txt}}\n" + CHAIN.replace("value: 1", 'value: 1, plus: "${inputs.n}"')
    (tmp_path / "n.txt").write_text("4")
    before = keys(tmp_path, text)
    (tmp_path / "n.txt").touch()
    assert keys(tmp_path, text) == before
    (tmp_path / "n.txt").write_text("5")
    after = keys(tmp_path, text)
    assert {name for name in before if before[name] != after[name]} == {"a", "b", "c"}


def test_a_large_input_is_read_once_and_again_when_its_file_changed(tmp_path, monkeypatch):
    memory, path = tmp_path / "inputs.json", tmp_path / "model"
    path.mkdir()
    (path / "weights").write_bytes(b"a" * 100)
    (path / "small").write_bytes(b"b")
    read: list[Path] = []
    monkeypatch.setattr("r1async.recipes.digests.digest_of", lambda path: read.append(path) or digest_of(path))

    def found(changed_s: int) -> str:
        os.utime(path / "weights", (changed_s, changed_s))
        os.utime(path / "small", (1, 1))
        return digests({"model": path}, memory, large=101)["model"]

    first = found(1)
    assert first == digest_of(path)
    assert found(1) == first
    assert len(read) == 1
    (path / "weights").write_bytes(b"c" * 100)
    assert found(2) == digest_of(path) != first
    assert len(read) == 2
    assert digests({"model": path}, memory, large=102)["model"] == digest_of(path)  # a small one is always read
    assert len(read) == 3


def test_each_makes_a_stage_for_every_name_and_a_table_of_them(tmp_path):
    text = CHAIN + (
        f'  twice: {{each: [a, alone], {NUMBER}, set: {{value: 0, plus: "${{each.out}}"}}}}\n'
        '  all: {make: "tests.recipe_steps:table", outputs: {out: table.txt}, set: {of: "${twice.out}"}}\n'
    )
    jobs = plan(read(tmp_path, text))
    assert jobs["twice-a"].settings["plus"] == str(jobs["a"].folder / "number.txt")
    assert jobs["all"].settings["of"] == {
        "a": str(jobs["twice-a"].folder / "number.txt"),
        "alone": str(jobs["twice-alone"].folder / "number.txt"),
    }
    assert jobs["all"].stage.needs == ("twice-a", "twice-alone")


def test_settings_of_a_job_are_the_files_with_the_changes_over_them(tmp_path):
    (tmp_path / "zero.yaml").write_text("name: x\nreward: {weights: {accuracy: 1.0, format: 0.2}}\nsteps: 3\n")
    text = 'stages:\n  zero: {run: zero.yaml, set: {reward.weights: {accuracy: 2.0}, seed: "${seed}"}}\n'
    settings = plan(read(tmp_path, text, "seed=4"))["zero"].settings
    assert settings == {"name": "x", "reward": {"weights": {"accuracy": 2.0}}, "steps": 3, "seed": 4}


EVAL = "  exam: {eval: exam.yaml, set: {model.path: models/base, eval.benchmarks: [math500]}}\n"


def test_an_evaluation_is_a_stage_whose_folder_is_its_own(tmp_path):
    (tmp_path / "exam.yaml").write_text("data: {task: none}\neval: {prompts: 0}\n")
    text = f"stages:\n{EVAL}" + (
        '  page: {make: "tests.recipe_steps:table", outputs: {out: table.txt}, set: {of: {exam: "${exam.results}"}}}\n'
    )
    jobs = plan(read(tmp_path, text))
    exam = jobs["exam"]
    assert check(jobs, tmp_path) == []
    assert exam.outputs["results"] == exam.folder / "evaluations" / "v0"
    assert jobs["page"].settings["of"] == {"exam": str(exam.outputs["results"])}
    words = exam.stage.command.words(exam.settings, exam.folder)
    assert words == ("model=models/base", "--out", str(exam.folder))


def test_an_evaluation_without_a_benchmark_is_refused(tmp_path):
    (tmp_path / "exam.yaml").write_text("data: {path: rows.jsonl}\neval: {prompts: 4}\n")
    jobs = plan(read(tmp_path, f"stages:\n{EVAL.replace('[math500]', '[]')}"))
    assert check(jobs, tmp_path) == [
        "stages.exam: eval.benchmarks: an eval stage needs one; held-out prompts alone are a run with steps: 0"
    ]


def test_an_input_may_lie_beside_the_recipe(tmp_path):
    (tmp_path / "n.txt").write_text("4")
    text = "inputs: {n: n.txt}\n" + CHAIN.replace("value: 1", 'value: 1, plus: "${inputs.n}"')
    assert read(tmp_path, text).inputs == {"n": tmp_path / "n.txt"}


def test_the_order_of_a_functions_table_counts(tmp_path):
    text = 'stages:\n  page: {make: "r1async.recipes.report:report", set: {title: T, exams: {a: x, b: y}}}\n'
    first, second = (
        plan(read(tmp_path, each))["page"].key for each in (text, text.replace("a: x, b: y", "b: y, a: x"))
    )
    assert first != second


def test_a_functions_code_is_what_it_imports_and_not_its_neighbours():
    found = set(_sources("r1async.recipes.miniature.base"))
    assert {"r1async.recipes.miniature.documents", "r1async.recipes.cold_start"} <= found
    assert not {"r1async.recipes.miniature.findings", "r1async.recipes.report"} & found


def test_arguments_of_functions_are_checked_before_anything_runs(tmp_path):
    text = 'stages:\n  page: {make: "r1async.recipes.report:report", set: {titel: T, exams: {}}}\n'
    titel, title = check(plan(read(tmp_path, text)), tmp_path)
    assert titel.startswith("stages.page: set.titel: no argument of report; it has title, exams")
    assert title == "stages.page: set.title: must be set"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CHAIN.replace("${a.out}", "${aa.out}"), "no stage 'aa'; did you mean a?"),
        (CHAIN.replace("${a.out}", "${a.model}"), "a has out, not 'model'"),
        (CHAIN.replace("value: 1", 'value: 1, plus: "${c.out}"'), "which is a circle"),
        (CHAIN.replace("name: chain", "nmae: chain"), "nmae: unknown key; did you mean name?"),
        ("stages:\n  a: {set: {}}\n", "must name one command"),
        ("stages:\n  a: {run: none.yaml}\n", "none.yaml: no such file"),
        ("stages:\n  a: {run: none.yaml, outputs: {x: y}}\n", "only a `make` says what it makes"),
        ("inputs: {x: /no/such}\n" + CHAIN, "/no/such does not exist; give it, or inputs.x=PATH"),
        (CHAIN.replace("value: 1", 'value: "${each.out}"'), "the stage has no `each`"),
        ("stages: []\n", "stages: must be a table"),
        ("inputs: {m: .}\n" + CHAIN, "inputs.m: no stage takes it"),
        (
            f"{CHAIN}  b-a: {{{NUMBER}, each: [a], set: {{value: 1}}}}\n  b-a-a: {{{NUMBER}}}\n",
            "two stages have this name",
        ),
        (CHAIN.replace("alone:", "logs:"), "stages.logs: a stage's name is"),
        (CHAIN.replace("tests.recipe_steps:number", "tests.no_such:number"), "no module 'tests.no_such'"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, text, says):
    with pytest.raises(ConfigError) as error:
        plan(read(tmp_path, text))
    assert says in str(error.value)


def test_a_mistake_in_the_last_job_shows_before_the_first_runs(tmp_path):
    (tmp_path / "zero.yaml").write_text("steps: 3\nlerner: {lr: 1}\n")
    jobs = plan(read(tmp_path, CHAIN + "  zero: {run: zero.yaml}\n"))
    assert [line for line in check(jobs, tmp_path) if line.startswith("stages.zero: lerner: unknown key")]


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Selection(), ["a", "b", "c", "alone"]),
        (Selection(last="b"), ["a", "b"]),
        (Selection(first="b"), ["b", "c"]),
        (Selection(only="c"), ["c"]),
        (Selection(first="a", last="b"), ["a", "b"]),
    ],
)
def test_selections(tmp_path, selection, names):
    assert select(read(tmp_path, CHAIN), selection) == names


def test_a_selection_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not need"):
        select(read(tmp_path, CHAIN), Selection(first="alone", last="b"))


def test_a_job_is_done_while_its_outputs_are_there(tmp_path):
    job = plan(read(tmp_path, CHAIN))["a"]
    assert not job.done
    assert not job.begun
    begin(job)
    assert job.begun
    with pytest.raises(ConfigError, match="did not make out"):
        finish(job, 1.0)
    job.outputs["out"].write_text("1")
    finish(job, 1.0)
    assert job.done
    assert (job.folder.parent / "a").resolve() == job.folder.resolve()
    job.outputs["out"].unlink()
    assert not job.done


def test_a_stage_that_is_half_forgotten_is_not_done(tmp_path, monkeypatch):
    job = plan(read(tmp_path, CHAIN))["a"]
    begin(job)
    job.outputs["out"].write_text("1")
    finish(job, 1.0)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(job)
    assert not job.begun
    forget(job)
    assert not job.folder.exists()
    forget(job)
