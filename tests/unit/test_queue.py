"""The work queue, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from itertools import pairwise

import pytest

from tidegate.runtime.queue import Key, KeyQueue
from virtual import play

A, B, C = (Key("shop", name) for name in "abc")


def now() -> float:
    return asyncio.get_running_loop().time()


async def waits(coroutine: Awaitable[Key], seconds: float = 3600.0) -> bool:
    """Whether nothing comes of it for so long."""
    try:
        await asyncio.wait_for(coroutine, seconds)
    except TimeoutError:
        return True
    return False


def test_a_key_comes_out_once() -> None:
    async def story() -> None:
        queue = KeyQueue()
        for _ in range(3):
            queue.add(A)
        assert len(queue) == 1
        assert await queue.get() == A
        queue.done(A)
        assert len(queue) == 0
        assert await waits(queue.get())

    play(story())


def test_the_one_that_has_waited_longest_comes_first() -> None:
    async def story() -> None:
        queue = KeyQueue()
        queue.add(B)
        await asyncio.sleep(1)
        queue.add(A)
        queue.add(B)
        assert [await queue.get(), await queue.get()] == [B, A]

    play(story())


def test_a_key_in_flight_is_not_given_out_again_until_it_is_done() -> None:
    async def story() -> None:
        queue = KeyQueue()
        queue.add(A)
        assert await queue.get() == A
        queue.add(A)
        assert await waits(queue.get()), "one at a time"
        second = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.done(A)
        assert await second == A, "and what was asked for meanwhile is not lost"

    play(story())


def test_other_keys_do_not_wait_for_one_in_flight() -> None:
    async def story() -> None:
        queue = KeyQueue()
        queue.add(A)
        queue.add(B)
        assert {await queue.get(), await queue.get()} == {A, B}

    play(story())


def test_a_wake_up_comes_at_its_time() -> None:
    async def story() -> None:
        queue = KeyQueue()
        queue.add(A, 90.0)
        assert len(queue) == 0
        assert await queue.get() == A
        assert now() == pytest.approx(90)

    play(story())


def test_the_earlier_of_two_wishes_stands() -> None:
    async def story() -> None:
        queue = KeyQueue()
        queue.add(A, 60.0)
        queue.add(A, 10.0)
        queue.add(A, 30.0)
        assert await queue.get() == A
        assert now() == pytest.approx(10)
        queue.done(A)
        assert await waits(queue.get()), "the later ones are the same wish"

    play(story())


def test_an_event_wakes_whoever_waits_for_a_later_time() -> None:
    async def story() -> None:
        queue = KeyQueue()
        queue.add(A, 60.0)
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(5)
        queue.add(B)
        assert await waiting == B
        assert now() == pytest.approx(5)

    play(story())


def test_failures_are_tried_again_later_each_time_up_to_a_bound() -> None:
    async def story() -> None:
        queue = KeyQueue(backoff=(1.0, 5.0))
        queue.add(A)
        times = []
        for _ in range(6):
            assert await queue.get() == A
            times.append(now())
            queue.failed(A)
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert gaps == pytest.approx([1, 2, 4, 5, 5])

    play(story())


def test_success_forgets_failures() -> None:
    async def story() -> None:
        queue = KeyQueue(backoff=(1.0, 60.0))
        queue.add(A)
        await queue.get()
        assert queue.failed(A) == 1.0
        await queue.get()
        assert queue.failed(A) == 2.0
        await queue.get()
        queue.done(A)
        queue.add(A)
        await queue.get()
        assert queue.failed(A) == 1.0

    play(story())


def test_many_failures_do_not_overflow() -> None:
    async def story() -> None:
        queue = KeyQueue(backoff=(0.25, 60.0))
        queue.add(A)
        for _ in range(2000):
            await queue.get()
            delay = queue.failed(A)
        assert delay == 60.0

    play(story())


def test_an_event_does_not_wait_for_the_backoff_of_an_earlier_failure() -> None:
    async def story() -> None:
        queue = KeyQueue(backoff=(60.0, 60.0))
        queue.add(A)
        await queue.get()
        queue.failed(A)
        await asyncio.sleep(1)
        queue.add(A)
        assert await queue.get() == A
        assert now() == pytest.approx(1)

    play(story())


def test_one_failing_key_does_not_slow_the_others() -> None:
    async def story() -> None:
        queue = KeyQueue(backoff=(60.0, 60.0))
        queue.add(A)
        await queue.get()
        queue.failed(A)
        queue.add(B)
        assert await queue.get() == B
        assert now() == pytest.approx(0)

    play(story())


def test_a_forgotten_key_does_not_come_out() -> None:
    async def story() -> None:
        queue = KeyQueue(backoff=(1.0, 60.0))
        queue.add(A)
        await queue.get()
        queue.failed(A)
        queue.forget(A)
        assert await waits(queue.get())
        queue.add(A)
        await queue.get()
        assert queue.failed(A) == 1.0, "nor are its failures remembered"
        queue.forget(B)  # one that never was

    play(story())


def test_length_and_lag() -> None:
    async def story() -> None:
        queue = KeyQueue()
        assert (len(queue), queue.lag()) == (0, 0.0)
        queue.add(A)
        queue.add(B, 10.0)
        await asyncio.sleep(4)
        assert len(queue) == 1
        assert queue.lag() == pytest.approx(4)
        await asyncio.sleep(8)
        assert len(queue) == 2
        assert queue.lag() == pytest.approx(12)
        assert await queue.get() == A
        assert queue.lag() == pytest.approx(2), "since the one in flight has been taken up"

    play(story())


def test_lag_of_a_key_that_is_in_flight_and_asked_for_again_is_not_a_stuck_queue() -> None:
    async def story() -> None:
        queue = KeyQueue()
        queue.add(A)
        await queue.get()
        queue.add(A)
        await asyncio.sleep(100)
        assert queue.lag() == 0.0

    play(story())


def test_many_workers_share_the_keys_without_overlap() -> None:
    async def story() -> None:
        queue = KeyQueue()
        busy: set[Key] = set()
        passes: list[Key] = []

        async def work() -> None:
            while True:
                key = await queue.get()
                assert key not in busy
                busy.add(key)
                await asyncio.sleep(1)
                busy.remove(key)
                passes.append(key)
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(3)]
        for second in range(10):
            for key in (A, B, C):
                queue.add(key, 0.1 * second)
            await asyncio.sleep(0.7)
        await asyncio.sleep(10)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert {A, B, C} == set(passes)
        assert len(queue) == 0

    play(story())
