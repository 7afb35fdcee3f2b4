import asyncio
import time

import pytest

from heliotrope_server.errors import DeadlinePassedError, OverloadedError
from heliotrope_server.micro_batcher import MicroBatcher


async def test_what_waits_together_is_worked_on_together_and_in_order():
    batches = []

    def work(questions):
        batches.append(list(questions))
        return [question * 10 for question in questions]

    batcher = MicroBatcher(work, max_batch=4)
    answers = await asyncio.gather(*(batcher.submit(number) for number in range(10)))
    assert [answer.result for answer in answers] == [number * 10 for number in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_a_passed_deadline_is_dropped_before_work():
    worked = []

    def work(questions):
        worked.extend(questions)
        return questions

    batcher = MicroBatcher(work)
    late = asyncio.ensure_future(batcher.submit("late", deadline_s=time.monotonic() - 1))
    on_time = await batcher.submit("on time", deadline_s=time.monotonic() + 60)
    with pytest.raises(DeadlinePassedError):
        await late
    assert on_time.result == "on time"
    assert worked == ["on time"]


async def test_too_many_waiting_are_refused_with_a_hint():
    batcher = MicroBatcher(lambda questions: questions, max_waiting=6)
    waiting = [batcher.submit(number) for number in range(3)]
    with pytest.raises(OverloadedError) as refused:
        batcher.submit(3)
    assert refused.value.metadata["limit"] == "6"
    assert refused.value.retry_after_s > 0
    assert [timed.result for timed in await asyncio.gather(*waiting)] == [0, 1, 2]


async def test_a_flood_of_one_client_keeps_nobody_out_and_the_others_have_their_turn():
    batches = []

    def work(questions):
        batches.append(list(questions))
        return questions

    batcher = MicroBatcher(work, max_batch=4, max_waiting=40)
    asked = [batcher.submit(f"flood {number}", client="flood") for number in range(20)]
    with pytest.raises(OverloadedError):
        batcher.submit("one more", client="flood")
    asked += [batcher.submit(f"polite {number}", client="polite") for number in range(2)]
    asked.append(batcher.submit("newcomer", client="newcomer"))
    await asyncio.gather(*asked)
    assert batches[0] == ["flood 0", "polite 0", "newcomer", "flood 1"]
    assert batches[1] == ["polite 1", "flood 2", "flood 3", "flood 4"]
    assert sum(map(len, batches)) == 23


async def test_what_would_be_too_late_is_refused_when_it_comes():
    def work(questions):
        end = time.perf_counter() + 0.002 * len(questions)
        while time.perf_counter() < end:
            pass
        return questions

    batcher = MicroBatcher(work, max_batch=8)
    for _ in range(30):  # so that it knows that a question takes 2 ms
        await asyncio.gather(*(batcher.submit(number) for number in range(8)))
    waiting = [batcher.submit(number) for number in range(100)]
    with pytest.raises(OverloadedError, match="the deadline is in") as refused:
        batcher.submit("late", deadline_s=time.monotonic() + 0.05)
    assert refused.value.retry_after_s > 0.05
    in_time = batcher.submit("in time", deadline_s=time.monotonic() + 60)
    assert (await in_time).result == "in time"
    await asyncio.gather(*waiting)


async def test_a_batch_is_admitted_whole_or_not_at_all():
    batcher = MicroBatcher(lambda questions: questions, max_waiting=10)
    first = batcher.submit_all(list(range(30)), client="large")  # nobody waits: it would never fit otherwise
    with pytest.raises(OverloadedError):
        batcher.submit_all([1, 2], client="other")
    assert [timed.result for timed in await asyncio.gather(*first)] == list(range(30))
    assert [timed.result for timed in await asyncio.gather(*batcher.submit_all([1, 2], client="other"))] == [1, 2]


async def test_an_error_reaches_every_caller_and_the_next_batch_works():
    failing = True

    def work(questions):
        if failing:
            raise RuntimeError("broken")
        return questions

    batcher = MicroBatcher(work)
    outcomes = await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["broken", "broken"]
    failing = False
    assert (await batcher.submit(3)).result == 3


async def test_a_caller_that_has_gone_costs_no_work():
    worked = []

    def work(questions):
        worked.extend(questions)
        return questions

    batcher = MicroBatcher(work)
    gone = asyncio.ensure_future(batcher.submit("gone"))
    staying = asyncio.ensure_future(batcher.submit("staying"))
    await asyncio.sleep(0)
    gone.cancel()
    await staying
    assert worked in (["staying"], ["gone", "staying"])
