"""What the buffer says that generators wait for."""

from tests.core_peers import Generator, Learner, Run


def waits_for(run: Run) -> str:
    run.tick(run.now + 1.0)
    (peer,) = (peer for peer in run.events[-1].header["peers"] if peer["role"] == "generator")
    return peer["waits_for"]


def test_a_generator_that_has_weights_and_is_not_ready_waits_for_its_proof():
    run = Run()
    run.hello("generator-0")
    assert waits_for(run) == "weights"
    for version, what in ((-1.0, "weights"), (0.0, "the proof of its engine")):
        run.send("generator-0", {"t": "heartbeat", "stats": {"version": version}})
        assert waits_for(run) == what


def test_a_generator_with_weights_of_an_ended_life_is_fenced():
    run = Run()
    Learner(run)
    generator = Generator(run)
    generator.ready()
    second = Learner(run, epoch=2)
    assert not [wait for wait in run.buffer.waits(0.0) if wait["name"] == "fenced"]
    second.tell("published", version=0, hash="hash-0")
    (wait,) = (wait for wait in run.buffer.waits(0.0) if wait["name"] == "fenced")
    assert wait["text"] == "generator-0 has version 0@1; leases need version 0@2 or newer"
