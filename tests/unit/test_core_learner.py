"""The learner at the rollout buffer: ranks, lives, commits, restarts, the end of a run."""

import numpy as np
import pytest
from core_peers import Generator, Learner, Run, Scorer, accounts, crew, open_journal, prompt_of, work
from r1async._core import JournalBatches
from r1async.learner.batch import batch_from_message
from r1async.wire import unpack


def test_learner_waits_with_a_reason_told_once_per_change():
    run = Run(steps=1)
    generator, scorer, learner = crew(run)
    learner.ask()
    assert run.take(learner.name, "waiting").header["reason"] == "groups: 0 of 2 ready for step 0, 2 open"
    generator.finish(4)
    assert run.take_all(learner.name, "waiting") == []
    scorer.score()
    assert run.take(learner.name, "waiting").header["reason"].startswith("groups: 1 of 2 ready")
    run.tick(0.5)
    assert run.take_all(learner.name, "waiting") == []


def test_ranks_get_their_shares_of_one_batch():
    run = Run(steps=1, micro_batch_tokens=24)
    header = {"t": "hello", "protocol": 1, "role": "learner", "name": "learner-1-1", "run": "test"}
    run.send("learner-1-1", header | {"rank": 1, "world": 2, "epoch": 1, "step": 0})
    assert not run.inboxes["learner-1-1"]  # rank 1 is welcomed after rank 0
    first = Learner(run, rank=0, world=2)
    assert run.take("learner-1-1", "welcome").header["epoch"] == 1
    late = Learner(run, rank=1, world=2)
    generator, scorer = Generator(run), Scorer(run)
    scorer.ready()
    generator.ready()
    first.ask()
    work(generator, scorer)
    late.ask()
    one, two = run.take(first.name, "batch"), run.take(late.name, "batch")
    rollouts = np.concatenate([one.columns["rollouts"], two.columns["rollouts"]])
    np.testing.assert_array_equal(np.sort(rollouts), np.arange(8))
    assert one.header["total_rollouts"] == two.header["total_rollouts"] == 8
    assert one.header["total_loss_tokens"] == two.header["total_loss_tokens"]
    assert len(one.header["micro_batches"]) == len(two.header["micro_batches"]) > 1
    sizes = [int(it.columns["cu_seqlens"][-1]) for it in (one, two)]
    assert abs(sizes[0] - sizes[1]) <= 13
    late.ask()
    again = run.take(late.name, "batch")  # a rank that lost its share asks again and gets the same
    np.testing.assert_array_equal(again.columns["token_ids"], two.columns["token_ids"])
    late.tell("stepped", step=0, metrics={})
    assert run.error(late.name)["code"] == "role"


def test_rank_of_another_world_is_refused_before_and_after_rank_0():
    run = Run(steps=1)
    header = {"t": "hello", "protocol": 1, "role": "learner", "run": "test", "epoch": 1, "step": 0}
    run.send("learner-early", header | {"name": "early", "rank": 2, "world": 3})
    Learner(run, rank=0, world=2)
    run.send("learner-late", header | {"name": "late", "rank": 1, "world": 4})
    for peer, world in (("learner-early", 3), ("learner-late", 4)):
        error = run.error(peer)
        assert error["code"] == "invalid"
        assert error["message"] == f"hello: world {world}; rank 0 of epoch 1 has world 2"
    assert run.buffer.stats()["learner_ranks"] == 1


def test_stop_in_the_middle_of_a_step_gives_every_rank_its_share():
    run = Run(steps=3)
    ranks = [Learner(run, rank=rank, world=2) for rank in range(2)]
    generator, scorer = Generator(run), Scorer(run)
    scorer.ready()
    generator.ready()
    ranks[0].ask()
    work(generator, scorer)
    run.take(ranks[0].name, "batch")
    run.buffer.stop(run.now)
    ranks[1].ask()
    run.take(ranks[1].name, "batch")
    ranks[0].train()
    for rank in ranks:
        rank.step = 1
        rank.ask()
        run.take(rank.name, "finished")


def test_learner_that_comes_back_with_its_epoch_is_refused_and_told_what_was_seen():
    run = Run(steps=2)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    first = run.take(learner.name, "batch")
    header = {"t": "hello", "protocol": 1, "role": "learner", "name": "learner", "run": "test"}
    run.send("learner-new", header | {"rank": 0, "world": 1, "epoch": 1, "step": 0})
    error = run.error("learner-new")
    assert (error["code"], error["seen"]) == ("epoch", 1)
    new = Learner(run, epoch=2)
    assert new.welcome.header["seen"] == 2
    new.ask()
    second = run.take(new.name, "batch")
    np.testing.assert_array_equal(first.columns["rollouts"], second.columns["rollouts"])
    learner.tell("stepped", step=0, metrics={})  # of the life that has ended
    assert run.error(learner.name)["code"] == "epoch"
    new.train()
    accounts(run)


def test_same_learner_connects_again_and_goes_on():
    run = Run(steps=2)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    run.take(learner.name, "batch")
    run.buffer.peer_lost("batches", learner.name.encode(), run.now)
    Learner(run)  # the same identity and epoch
    learner.train()
    assert [ok.header["about"] for ok in run.take_all(learner.name, "ok")] == ["published", "stepped", "published"]
    assert run.buffer.stats()["steps"] == 1
    accounts(run)


def test_commit_is_answered_when_the_journal_has_it(tmp_path):
    run = Run(steps=2, journal=tmp_path / "journal")
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    learner.train()
    before = run.buffer.journal_bytes()
    learner.commit()
    after = run.buffer.journal_bytes()
    assert before is not None
    assert after is not None
    assert after[0] > before[0]
    assert (tmp_path / "journal" / "events").stat().st_size == after[0]
    assert run.buffer.committed_steps() == 1


def test_killed_buffer_goes_on_with_all_it_had(tmp_path):
    run = Run(steps=4, journal=tmp_path / "journal")
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    learner.train()
    learner.commit()
    run.take(learner.name, "batch")
    learner.ask()
    work(generator, scorer)  # a second batch, handed out and never trained
    batch = run.take(learner.name, "batch")
    before = run.buffer.audit()
    again = Run(steps=4, journal=tmp_path / "journal")  # the first is not closed, as a kill would not
    recovery = again.buffer.recovery()
    assert recovery is not None
    assert recovery["events"] > 20
    after = again.buffer.audit()
    assert {name: after[name] for name in ("prompts", "rollouts", "tokens")} == {
        name: before[name] for name in ("prompts", "rollouts", "tokens")
    }
    assert again.now >= run.now
    new = Learner(again, epoch=2, step=1)
    new.ask()
    same = again.take(new.name, "batch")
    assert (same.header["step"], same.header["epoch"]) == (1, 2)
    for name, column in batch.columns.items():
        np.testing.assert_array_equal(same.columns[name], column)
    accounts(again)


def test_journal_of_other_data_or_damaged_is_refused(tmp_path):
    folder = tmp_path / "journal"
    run = Run(steps=2, journal=folder)
    crew(run)
    with pytest.raises(ValueError, match='group_size was "4" when this run began, is "2" now'):
        open_journal(folder, steps=2, group_size=2, min_group_size=1)
    events = folder / "events"
    whole = bytearray(events.read_bytes())
    whole[len(whole) // 2] ^= 4
    events.write_bytes(whole)
    with pytest.raises(ValueError, match=f"{events} is damaged at byte [0-9]+"):
        open_journal(folder, steps=2)


def test_short_last_batch_and_end_of_prompts():
    run = Run(steps=4, prompts=3)
    generator, scorer, learner = crew(run)
    groups = []
    for step in range(2):
        learner.ask()
        work(generator, scorer)
        groups.append(run.take(learner.name, "batch").header["total_groups"])
        learner.train()
        generator.version = (1, step + 1)
        generator.ready()
    assert groups == [2, 1]
    learner.ask()
    run.take(learner.name, "finished")
    assert accounts(run)["prompts"][0] == 3


def test_a_learner_that_has_converged_trains_what_has_begun_and_no_more(tmp_path):
    run = Run(steps=50, journal=tmp_path)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    run.take(learner.name, "batch")
    learner.tell("stepped", step=0, metrics={"converged": True})
    learner.step = 1
    learner.tell("published", version=1, hash="hash-1")
    admitted = accounts(run)["prompts"][0]
    while True:
        assert learner.step < 10, "far fewer than steps=50"
        generator.version = (1, learner.step)
        generator.ready()
        learner.ask()
        work(generator, scorer)
        if not run.take_all(learner.name, "batch"):
            break
        learner.train()
    run.take(learner.name, "finished")
    learner.commit()
    assert accounts(run)["prompts"] == (admitted, admitted, 0, 0)
    assert learner.step == admitted / 2


def test_stop_ends_the_learner_at_its_next_question():
    run = Run(steps=4)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    run.take(learner.name, "batch")
    run.buffer.stop(run.now)
    run.pump()
    assert run.events[-1].header["state"] == "stopping"
    assert run.buffer.wanted_prompts() == []
    learner.train()
    learner.ask()
    assert run.take(learner.name, "finished").header["state"] == "stopping"
    held = len(generator.held)
    generator.version = (1, 1)
    generator.ready()
    assert len(generator.held) == held


def test_parts_are_handed_out_while_the_batch_fills(tmp_path):
    folder = tmp_path / "journal"
    changes = {"steps": 2, "groups_per_step": 3, "part_groups": 1, "max_staleness": 1}
    run = Run(journal=folder, **changes)
    generator, scorer, learner = crew(run)
    learner.ask()
    generator.finish(4)
    scorer.score()
    first = run.take(learner.name, "batch")
    assert (first.header["part"], first.header["last"], first.header["total_groups"]) == (0, False, 1)
    run.take_all(learner.name, "waiting")
    learner.ask(part=1)
    assert run.take(learner.name, "waiting").header["reason"].startswith("groups: 1 of 3 ready")
    del run.buffer  # killed; what it handed out is in the journal

    again = Run(journal=folder, **changes)
    generator, scorer, learner = crew(again)
    learner.ask(part=1)
    work(generator, scorer)
    rest = again.take(learner.name, "batch")
    assert (rest.header["part"], rest.header["last"], rest.header["total_groups"]) == (1, True, 2)
    trained = np.concatenate([first.columns["groups"], rest.columns["groups"]])
    assert sorted(set(trained.tolist())) == [0, 1, 2]
    learner.train()
    learner.commit()
    assert accounts(again)["prompts"][1] == 3
    learner.ask(part=1)
    assert again.error(learner.name)["message"].startswith("part 1 of step 1; want at most 0")
    replayed = [unpack(frame) for *_, frame in JournalBatches(folder, 1.0, 1024)]
    assert [(it.header["step"], it.header["part"], it.header["last"]) for it in replayed] == [
        (0, 0, False),
        (0, 1, True),
    ]
    np.testing.assert_array_equal(replayed[0].columns["token_ids"], first.columns["token_ids"])


def test_stop_within_a_batch_gives_every_rank_the_part_that_one_has():
    run = Run(steps=1, groups_per_step=3, part_groups=1, max_staleness=1)
    one, two = Learner(run, world=2), Learner(run, rank=1, world=2)
    one.tell("published", version=0, hash="hash-0")
    generator, scorer = Generator(run), Scorer(run)
    generator.ready()
    scorer.ready()
    one.ask()
    generator.finish(4)
    scorer.score()
    assert not run.take(one.name, "batch").header["last"]
    run.buffer.stop(run.now)
    two.ask()
    assert not run.take(two.name, "batch").header["last"]
    for rank in (one, two):
        rank.ask(part=1)
        run.take(rank.name, "finished")
    assert accounts(run)["prompts"][1] == 0


def test_late_member_comes_in_the_frame_of_a_later_batch():
    run = Run(steps=4, groups_per_step=1, waste_budget=1.0)
    generator, scorer, learner = crew(run)
    generator.finish(7)  # groups 0 and 1, but for the last rollout of group 1
    scorer.score()
    learner.ask()
    run.take(learner.name, "batch")
    learner.train()
    learner.ask()
    early = batch_from_message(run.take(learner.name, "batch"))
    assert (early.total_groups, early.total_rollouts) == (1, 3)
    learner.train()
    generator.version = (1, 2)
    work(generator, scorer)
    generator.ready()
    work(generator, scorer)
    learner.ask()
    batch = batch_from_message(run.take(learner.name, "batch"))
    assert (batch.total_groups, batch.total_rollouts) == (1, 5)
    assert (batch.rollouts[-1], batch.groups[-1]) == (7, 1)
    assert batch.advantages[-1] == pytest.approx(1.0, abs=1e-5)  # 1 among 0, 1, 0, 1, its siblings trained before
    assert batch.token_ids[batch.cu_seqlens[4] :][: batch.prompt_lens[4]].tolist() == prompt_of(1).tolist()
    stats = run.buffer.stats()
    assert (stats["closed_early"], stats["late_waiting"]) == (1, 0)
    assert run.buffer.audit()["balanced"]


def test_low_effective_sample_size_shrinks_the_window_under_adaptive_pacing():
    run = Run(steps=4, mode="adaptive", max_staleness=3, pacing=3)
    generator, scorer, learner = crew(run)
    for step in range(2):
        learner.ask()
        work(generator, scorer)
        run.take(learner.name, "batch")
        learner.tell("stepped", step=step, metrics={"is/ess": 0.1})
        learner.step += 1
        learner.tell("published", version=step + 1, hash=f"hash-{step + 1}")
        generator.version = (1, step + 1)
        generator.ready()
    # 4 batches of places; a batch and a half is left over at the first bind, the second follows a low sample size.
    assert run.buffer.stats()["pacing"] == 4 * 0.875 * 0.875 - 1


def test_prompt_of_a_source_without_a_window_is_refused():
    run = Run(windows=[("slow", 4, 0.5)])
    run.buffer.admit(0, prompt_of(0), b"{}", 0.0, 1)
    with pytest.raises(ValueError, match="source 2; want below 2"):
        run.buffer.admit(1, prompt_of(1), b"{}", 0.0, 2)
