"""Every name finds its model, and the log says so when the name is not known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from perdure.errors import RunFailure
from perdure.models.base import Capacity, ModelPiece, ModelRequest
from perdure.models.names import ModelRegistry


class ListedModel:
    """A model that lists names, or fails to."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.failure: RunFailure | None = None
        self.hangs = False
        self.fetches = 0
        self.closed = False

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelPiece, None]:
        if request.messages:
            raise RunFailure("nothing is asked here")
        return
        yield  # type: ignore[unreachable] # it makes this a generator

    async def list_models(self) -> list[str]:
        self.fetches += 1
        await (asyncio.Event().wait() if self.hangs else asyncio.sleep(0))
        if self.failure is not None:
            raise self.failure
        return self.names

    def capacity(self, model: str) -> Capacity:
        raise AssertionError(f"a registry does not ask what {model} takes")

    async def warm_up(self) -> None:
        raise AssertionError("a registry warms nothing up")

    async def close(self) -> None:
        self.closed = True


class SetClock:
    """Time that a test sets."""

    time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class House:
    """A registry with its models: built-in `smol`, upstreams `default` and `big`."""

    def __init__(self, *, builtin: bool = True, upstreams: bool = True, **settings: Any) -> None:
        self.small, self.first, self.second = (
            ListedModel("smol"),
            ListedModel("qwen", "llama"),
            ListedModel("llama", "o"),
        )
        self.clock = SetClock()
        models = {"builtin": self.small} if builtin else {}
        if upstreams:
            models |= {"default": self.first, "big": self.second}
        self.registry = ModelRegistry(
            models,
            [name for name in models if name != "builtin"],
            "smol" if builtin else None,
            model_map=settings.get("model_map", {}),
            default_model=settings.get("default_model"),
            clock=self.clock,
            log=logging.getLogger("perdure.models"),
            fetch_seconds=0.05,
        )

    def resolve(self, name: str) -> tuple[Any, str]:
        return asyncio.run(self.registry.resolve(name))


@pytest.fixture(autouse=True)
def _log_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "perdure.models")


def test_known_names_find_their_model() -> None:
    house = House()
    assert house.resolve("smol") == (house.small, "smol")
    assert house.resolve("builtin") == (house.small, "smol")
    assert house.resolve("builtin/anything") == (house.small, "smol")
    assert house.resolve("big/any/thing") == (house.second, "any/thing")
    assert house.resolve("llama") == (house.first, "llama")
    assert house.resolve("o") == (house.second, "o")


def test_the_map_wins_exact_names_first_and_targets_are_not_mapped_again() -> None:
    names = {"gpt-4*": "big/o", "gpt-4o": "qwen", "smol": "llama", "qwen": "smol", "???": "gpt-4o"}
    house = House(model_map=names)
    assert house.resolve("gpt-4o") == (house.first, "qwen")
    assert house.resolve("gpt-4-turbo") == (house.second, "o")
    assert house.resolve("smol") == (house.first, "llama")
    assert house.resolve("qwen") == (house.small, "smol")
    assert house.resolve("abc") == (house.first, "gpt-4o")
    assert house.resolve("GPT-4")[1] == "GPT-4"


def test_a_mapped_name_that_no_upstream_lists_is_sent_all_the_same() -> None:
    house = House(model_map={"gpt-4o": "hidden"}, default_model="big/o")
    assert house.resolve("gpt-4o") == (house.first, "hidden")


def test_unknown_names_go_to_the_default_then_the_first_upstream_then_the_builtin() -> None:
    with_default = House(default_model="big/o")
    assert with_default.resolve("gpt-4o") == (with_default.second, "o")
    mapped_default = House(default_model="good", model_map={"good": "smol"})
    assert mapped_default.resolve("gpt-4o") == (mapped_default.small, "smol")
    unlisted_default = House(default_model="hidden")
    assert unlisted_default.resolve("gpt-4o") == (unlisted_default.first, "hidden")
    without = House()
    assert without.resolve("gpt-4o") == (without.first, "gpt-4o")
    assert without.resolve("meta/llama-3") == (without.first, "meta/llama-3")
    alone = House(upstreams=False)
    assert alone.resolve("gpt-4o") == (alone.small, "smol")


def test_the_log_speaks_once_for_each_unknown_name(caplog: pytest.LogCaptureFixture) -> None:
    house = House(upstreams=False)
    for name in ("gpt-4o", "gpt-4o", "smol", "gpt-4"):
        house.resolve(name)
    assert caplog.messages == [
        "model 'gpt-4o' is not known here: answered by the built-in model 'smol'",
        "model 'gpt-4' is not known here: answered by the built-in model 'smol'",
    ]


def test_with_no_model_at_all_the_failure_says_what_to_set() -> None:
    with pytest.raises(RunFailure, match="PERDURE_UPSTREAM_URL"):
        House(builtin=False, upstreams=False).resolve("gpt-4o")
    with pytest.raises(RunFailure, match="PERDURE_BUILTIN_MODEL"):
        House(builtin=False, upstreams=False, default_model="builtin").resolve("builtin")


def test_lists_are_fetched_once_a_minute_by_all_together() -> None:
    house = House()

    async def many() -> None:
        await asyncio.gather(*(house.registry.resolve("llama") for _ in range(20)))

    asyncio.run(many())
    assert (house.first.fetches, house.second.fetches) == (1, 1)
    house.clock.time += 59
    house.resolve("llama")
    assert house.first.fetches == 1
    house.first.names = ["new"]
    house.clock.time += 2
    assert house.resolve("new") == (house.first, "new")
    assert house.first.fetches == 2


def test_a_failed_list_is_left_alone_for_ten_seconds_and_its_old_names_count(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    assert house.resolve("o") == (house.second, "o")
    house.second.failure = RunFailure("it is away")
    house.clock.time += 61
    assert house.resolve("o") == (house.second, "o")
    assert caplog.messages == ["models of upstream 'big' are not listed: it is away"]
    house.clock.time += 9
    house.resolve("o")
    assert house.second.fetches == 2
    house.clock.time += 2
    house.resolve("o")
    assert house.second.fetches == 3


def test_a_list_that_does_not_come_holds_nobody_for_long(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.second.hangs = True
    assert house.resolve("llama") == (house.first, "llama")
    assert caplog.messages == ["models of upstream 'big' are not listed: no answer in 0.05 seconds"]


def test_the_list_holds_each_name_once_and_skips_what_failed() -> None:
    house = House(model_map={"gpt-4o": "qwen", "gpt-*": "qwen", "llama": "qwen"})
    expected = [("smol", "perdure"), ("gpt-4o", "perdure"), ("llama", "perdure"), ("qwen", "default"), ("o", "big")]
    assert asyncio.run(house.registry.list_models()) == expected
    house.second.failure = RunFailure("it is away")
    house.clock.time += 61
    assert asyncio.run(house.registry.list_models()) == expected[:-1]


def test_closing_closes_every_model() -> None:
    house = House()
    asyncio.run(house.registry.close())
    assert all(model.closed for model in (house.small, house.first, house.second))
