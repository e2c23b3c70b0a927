import os
import signal
import threading

import pytest
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals


def test_items_come_in_order_and_take_empties() -> None:
    inbox = Inbox()
    for item in (1, 2, 3):
        inbox.put(item)
    assert inbox.get("one", 1) == 1
    assert inbox.take() == [2, 3]
    assert inbox.take() == []


def test_items_passed_over_stay_in_order() -> None:
    inbox = Inbox()
    for item in (1, "a", 2, "b"):
        inbox.put(item)
    assert inbox.get("a text", 1, lambda item: item == "b") == "b"
    assert inbox.get("a text", 1, lambda item: isinstance(item, str)) == "a"
    assert inbox.take() == [1, 2]


def test_deadline_names_the_wait_and_the_sources() -> None:
    inbox = Inbox()
    inbox.add_source(lambda: "weights tcp://127.0.0.1:5: nobody answers")
    inbox.put("other")
    with pytest.raises(DeadlineExceeded, match=r"waited \d\.\d s for weights 3@1; weights tcp://127.0.0.1:5: nobody"):
        inbox.get("weights 3@1", 0.01, lambda item: item == "weights")
    assert inbox.take() == ["other"]


def test_failure_of_a_thread_is_raised_where_the_role_waits() -> None:
    inbox = Inbox()
    thread = threading.Thread(target=lambda: inbox.fail(OSError("disk full")))
    thread.start()
    with pytest.raises(OSError, match="disk full"):
        inbox.get("anything", 10)
    thread.join()


def test_a_signal_ends_the_wait_once_and_the_role_may_wait_again() -> None:
    inbox = Inbox()
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(inbox):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Stopped):
            inbox.get("leases", 10)
        inbox.put("committed")
        assert inbox.get("committed", 1) == "committed"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_the_launcher_ignores_for_us_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals(Inbox()):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
