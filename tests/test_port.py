"""The reply that can be read while it is written."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.search.port import StreamedReply

SECONDS = 20


def test_what_was_written_can_be_read_at_any_time() -> None:
    reply = StreamedReply()
    reply.write("one ")
    reply.write("two")
    assert reply.read(beyond=0) == "one two"
    assert reply.read(beyond=6) == "one two"
    assert not reply.done()


def test_who_writes_learns_when_it_is_enough() -> None:
    reply = StreamedReply()
    assert reply.write("one ")
    reply.enough()
    assert not reply.write("two ")
    assert reply.read(beyond=0) == "one two "
    assert not reply.done()


def test_reading_waits_for_more() -> None:
    reply = StreamedReply()
    reply.write("one")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reply.read, 3)
        assert not reading.done()
        reply.write("")
        reply.write(" two")
        assert reading.result(SECONDS) == "one two"


@pytest.mark.parametrize("fails", [False, True])
def test_reading_ends_with_the_reply(fails: bool) -> None:
    reply = StreamedReply()
    reply.write("one")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reply.read, 3)
        if fails:
            reply.set_exception(LLMError("reset"))
        else:
            reply.set_result("the whole")
        assert reading.result(SECONDS) == "one"
    assert reply.read(beyond=1000) == "one"


def test_a_reply_without_a_text_can_be_read() -> None:
    reply = StreamedReply()
    reply.set_result("")
    assert (reply.read(beyond=0), reply.result()) == ("", "")


def test_the_result_is_a_futures() -> None:
    reply: Future[str] = StreamedReply()
    told: list[str] = []
    reply.add_done_callback(lambda future: told.append(future.result()))
    reply.set_result("the whole")
    assert (reply.result(), told) == ("the whole", ["the whole"])


def test_no_piece_is_lost_however_writer_and_reader_meet() -> None:
    reply, pieces = StreamedReply(), [f"{i}," for i in range(5000)]

    def write() -> None:
        for piece in pieces:
            reply.write(piece)
        reply.set_result("".join(pieces))

    writer = threading.Thread(target=write)
    writer.start()
    text = ""
    while not reply.done():
        longer = reply.read(beyond=len(text))
        assert longer.startswith(text)
        text = longer
    writer.join()
    assert reply.read(beyond=len(text)) == reply.result() == "".join(pieces)
