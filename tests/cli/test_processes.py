from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hanmaru_cli.laptop import Part
from hanmaru_cli.marks import ENV_UP_ID, kill_marked, marked
from hanmaru_cli.processes import LONGEST_DELAY_S, STEADY_S, End, Keeper, next_delay_s
from hanmaru_contracts.errors import HanmaruError
from hypothesis import given
from hypothesis import strategies as st

STAND_IN = str(Path(__file__).with_name("stand_in.py"))


def part(*arguments: str, stop_s: float = 10.0) -> Part:
    return Part("part", (sys.executable, STAND_IN, *arguments), {"MORE": "1"}, port=0, ready_path=None, stop_s=stop_s)


@asynccontextmanager
async def kept(
    tmp_path: Path, what: Part, on_end: Callable[[End], None] = lambda _: None
) -> AsyncIterator[tuple[Keeper, dict[str, str]]]:
    up_id = uuid.uuid4().hex
    keeper = Keeper(what, up_id=up_id, environment=os.environ, log=tmp_path / "part.log", on_end=on_end)
    running = asyncio.create_task(keeper.run())
    try:
        yield keeper, {ENV_UP_ID: up_id}
    finally:
        await keeper.kill()
        await running


async def until(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 (what is awaited is another process)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("ran_s", "delays_s"),
    [
        ([0.1] * 7, [1, 2, 4, 8, 16, 30, 30]),
        ([0.1, 0.1, STEADY_S, 0.1], [1, 2, 1, 2]),
        ([1000.0, 1000.0], [1, 1]),
    ],
)
def test_the_delay_doubles_while_a_part_dies_young(ran_s: list[float], delays_s: list[float]) -> None:
    delay_s, seen = 0.0, []
    for ran in ran_s:
        delay_s = next_delay_s(delay_s, ran)
        seen.append(delay_s)
    assert seen == delays_s


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_the_delay_stays_within_its_bounds(ran_s: list[float]) -> None:
    delay_s = 0.0
    for ran in ran_s:
        delay_s = next_delay_s(delay_s, ran)
        assert 1.0 <= delay_s <= LONGEST_DELAY_S


async def test_a_part_that_is_killed_starts_again_and_what_it_left_is_ended(tmp_path: Path) -> None:
    ends: list[End] = []
    async with kept(tmp_path, part("--daemon"), ends.append) as (keeper, mark):
        await until(lambda: len(marked(mark)) == 2)
        before = {process.pid for process in marked(mark)}
        leader = next(process for process in marked(mark) if STAND_IN in process.cmdline())
        leader.send_signal(signal.SIGKILL)
        await until(lambda: len(marked(mark)) == 2 and not before & {process.pid for process in marked(mark)})
        assert str(ends[0]) == "part ended (killed by SIGKILL); it starts again in 1 s"
        assert keeper.tail().count("started ") == 2


async def test_stopping_asks_first_and_leaves_nothing(tmp_path: Path) -> None:
    async with kept(tmp_path, part("--daemon")) as (keeper, mark):
        await until(lambda: len(marked(mark)) == 2)
        assert await keeper.stop()
        assert keeper.tail() == ["started ", "asked to end"]
        assert not marked(mark)


async def test_a_part_that_does_not_end_is_killed_after_its_limit(tmp_path: Path) -> None:
    async with kept(tmp_path, part("--stubborn", stop_s=0.3)) as (keeper, mark):
        await until(lambda: bool(keeper.tail()))
        await asyncio.sleep(0)
        await until(lambda: len(marked(mark)) == 1)
        assert not await keeper.stop()
        assert not marked(mark)


async def test_stopping_ends_a_wait_for_the_next_start(tmp_path: Path) -> None:
    ends: list[End] = []
    async with kept(tmp_path, part("--fail"), ends.append) as (keeper, _):
        await until(lambda: bool(ends))
        async with asyncio.timeout(0.9):
            assert await keeper.stop()
    assert ends[0].status == 3
    assert keeper.tail() == ["started ", "the reason why"]


async def test_stopping_right_after_the_start_leaves_nothing(tmp_path: Path) -> None:
    async with kept(tmp_path, part()) as (keeper, mark):
        await asyncio.sleep(0)  # the start has begun, no more
        await keeper.stop()
        assert not marked(mark)


async def test_the_log_of_the_run_before_is_kept_beside(tmp_path: Path) -> None:
    (tmp_path / "part.log").write_text("earlier\n")
    async with kept(tmp_path, part()) as (keeper, _):
        await until(lambda: keeper.tail() == ["started "])
    assert (tmp_path / "part.previous.log").read_text() == "earlier\n"


async def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = Part("part", ("/no/such/program",), {}, port=0, ready_path=None, stop_s=1)
    keeper = Keeper(missing, up_id="x", environment={}, log=tmp_path / "part.log", on_end=lambda _: None)
    with pytest.raises(HanmaruError, match=r"part cannot be started \(/no/such/program\)"):
        await keeper.run()


def test_marks_are_compared_as_a_whole() -> None:
    assert not marked({ENV_UP_ID: uuid.uuid4().hex})
    assert not kill_marked({ENV_UP_ID: uuid.uuid4().hex})
