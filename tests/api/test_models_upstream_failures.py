"""Each way in which an upstream fails: what is tried again, and what the operator is told."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from perdure.errors import OperatorError, RunFailure
from perdure.models.base import (
    Finished,
    TextDelta,
)
from perdure.models.chat_completions import ChatCompletionsModel
from perdure.models.scripted import ScriptedServer
from perdure.settings import UpstreamSettings, read_settings
from tests.raw_upstream import (
    EVENTS,
    JSON,
    KEY,
    PlayedClock,
    RawUpstream,
    asking,
    client,
    delta,
    events,
    gathered,
    listening,
    read,
    refusal,
    response,
    scripted,
)


def failure_of(*answers: bytes | list[bytes], **more: Any) -> RunFailure:
    with pytest.raises(RunFailure) as caught:
        read(*answers, **more)
    assert KEY not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def test_a_server_that_is_not_there_is_asked_again_and_then_named() -> None:
    async def run() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
            clock = PlayedClock()
            async with client(url, clock, upstream_retries=3) as model:
                with pytest.raises(RunFailure) as caught:
                    await gathered(model, asking())
        assert caught.value.code == "server_error"
        assert f"can not be reached at {url}: " in caught.value.message
        assert "Check PERDURE_UPSTREAM_URL and that the server runs." in caught.value.message
        assert clock.slept == [0.5, 1.0, 2.0]

    asyncio.run(run())


def test_a_host_that_does_not_exist_is_named_without_its_password() -> None:
    async def run() -> None:
        url = f"http://me:{KEY}@nowhere.invalid/v1"
        async with client(url, name="far", upstream_retries=0) as model:
            with pytest.raises(RunFailure) as caught:
                await gathered(model, asking())
        assert "The upstream 'far' can not be reached at http://nowhere.invalid/v1: " in caught.value.message
        assert "Check PERDURE_UPSTREAMS, 'far', url" in caught.value.message
        assert KEY not in caught.value.message

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "message", "more", "code", "said"),
    [
        (401, f"Incorrect API key provided: {KEY}.", {}, "server_error", "Check PERDURE_UPSTREAM_KEY"),
        (403, "No.", {}, "server_error", "Check PERDURE_UPSTREAM_KEY"),
        (404, "No such model.", {}, "server_error", "'some-model'"),
        (400, "Bad temperature.", {}, "server_error", "Bad temperature."),
        (400, "Too big.", {"code": "context_length_exceeded"}, "invalid_prompt", "Too big."),
        (400, "Invalid 'messages[0].content'.", {}, "invalid_prompt", "messages[0].content"),
        (413, "prompt is too long", {}, "invalid_prompt", "too long"),
        (429, "Slow down.", {}, "rate_limit_exceeded", "Slow down."),
        (429, "Pay first.", {"code": "insufficient_quota"}, "rate_limit_exceeded", "Pay first."),
        (500, "Oh.", {}, "server_error", "status 500: Oh."),
        (503, "Loading.", {}, "server_error", "status 503: Loading."),
    ],
)
def test_a_refusal_says_what_to_check(status: int, message: str, more: dict[str, Any], code: str, said: str) -> None:
    failure = failure_of(refusal(status, message, **more))
    assert failure.code == code
    assert said in failure.message
    assert "upstream 'default' (http://127.0.0.1:" in failure.message
    assert str(status) in failure.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'[{"error": {"message": "in a list"}}]', "in a list"),
        (b'{"error": "as text"}', "as text"),
        (b'{"detail": "as detail"}', "as detail"),
        (b'{"error": null, "message": "beside"}', "beside"),
        (b"plain\nwords", "plain words"),
        (b'"only a string"', "only a string"),
        (b"17", "17"),
        (b"\xff\xfe", "\ufffd"),
        (b"", "nothing more"),
    ],
)
def test_an_error_is_found_in_any_body(body: bytes, said: str) -> None:
    assert said in failure_of(response(body, status=418)).message


def test_a_huge_error_is_not_read_to_its_end() -> None:
    failure = failure_of([response(b"x" * 5000, status=418), *[b"x" * 100_000] * 50])
    assert len(failure.message) < 1000


def test_a_redirect_says_where_it_points() -> None:
    answer = response(b"", b"location: https://example.com/login?key=1\r\n", 302)
    assert "it points to https://example.com/login " in failure_of(answer).message


@pytest.mark.parametrize(
    ("head", "waits"),
    [
        (b"", [0.5, 1.0]),
        (b"retry-after: 3\r\n", [3.0, 3.0]),
        (b"retry-after-ms: 40\r\n", [0.04, 0.04]),
        (b"retry-after: Fri, 15 Jan 2027 08:00:10 GMT\r\n", [10.0, 0.0]),
        (b"retry-after: soon\r\n", [0.5, 1.0]),
        (b"retry-after: 31\r\n", []),
    ],
)
@pytest.mark.parametrize("status", [429, 502])
def test_retries_wait_as_long_as_the_upstream_asks(status: int, head: bytes, waits: list[float]) -> None:
    clock = PlayedClock()
    failure_of(refusal(status, "Later.", JSON + head), clock=clock)
    assert clock.slept == waits


def test_a_retry_can_succeed_and_nothing_is_given_twice() -> None:
    clock = PlayedClock()
    answers = [refusal(429, "Later."), refusal(500, "Oh."), events(delta("stop", content="a"))]
    assert read(*answers, clock=clock) == [TextDelta("a"), Finished("stop")]
    assert clock.slept == [0.5, 1.0]


def test_a_connection_closed_without_an_answer_is_tried_again() -> None:
    clock = PlayedClock()
    assert read(b"", events(delta("stop", content="a")), clock=clock) == [TextDelta("a"), Finished("stop")]
    assert clock.slept == [0.5]
    assert "broke off" in failure_of(b"").message


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_a_retry_can_not_mend_is_not_retried(status: int) -> None:
    clock = PlayedClock()
    failure_of(refusal(status, "No."), clock=clock)
    assert clock.slept == []


def test_nothing_is_retried_after_the_first_piece() -> None:
    async def use(app: ScriptedServer, model: ChatCompletionsModel) -> None:
        stream = model.stream(asking())
        assert [await anext(stream), await anext(stream)] == [TextDelta("a"), TextDelta(" b")]
        with pytest.raises(RunFailure, match="broke off its answer"):
            await anext(stream)
        assert len(app.requests) == 1

    scripted({"otherwise": {"say": "a b c", "break_after": 2}}, use)


@pytest.mark.parametrize("hang_after", [0, 1])
def test_silence_is_a_failure(hang_after: int) -> None:
    async def use(app: ScriptedServer, model: ChatCompletionsModel) -> None:
        with pytest.raises(RunFailure, match=r"sent nothing for 0\.1 seconds.*PERDURE_UPSTREAM_SILENCE_SECONDS"):
            await gathered(model, asking())
        assert len(app.requests) == 1

    scripted({"otherwise": {"say": "a b", "hang_after": hang_after}}, use, silence=0.1)


def test_silence_before_the_head_is_a_failure_that_is_not_retried() -> None:
    async def run() -> None:
        upstream = RawUpstream(b"", slow=True)
        async with listening(upstream) as url, client(url, silence=0.05) as model:
            with pytest.raises(RunFailure, match="sent nothing"):
                await gathered(model, asking())
        assert len(upstream.bodies) == 1

    asyncio.run(run())


def test_silence_after_the_end_of_an_answer_is_none() -> None:
    async def run() -> None:
        upstream = RawUpstream(events(delta("stop", content="a"), end=""), slow=True)
        async with listening(upstream) as url, client(url, silence=0.05) as model:
            assert await gathered(model, asking()) == [TextDelta("a"), Finished("stop")]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (response(b"data: {oops}\n\n", EVENTS), "{oops}"),
        (response(b'data: {"choices": 7}\n\n', EVENTS), "choices"),
        (response(b"<html>log in</html>", b"content-type: text/html\r\n"), "log in"),
        (response(b'{"hello": 1}'), "hello"),
        (response(b"[1]"), "[1]"),
    ],
)
def test_what_is_no_chat_completion_is_quoted(answer: bytes, said: str) -> None:
    failure = failure_of(answer)
    assert said in failure.message
    assert "Check that PERDURE_UPSTREAM_URL" in failure.message


def test_a_key_that_the_upstream_repeats_is_taken_out_of_its_words() -> None:
    said = f"Incorrect API key provided: {KEY}, sk-ab***yz."
    assert "Incorrect API key provided: [key], [key] Check" in failure_of(refusal(401, said)).message


def test_the_key_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "perdure")
    failure_of(refusal(401, f"Bad key {KEY}"))
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", ["sk-한글", "sk-a\nb"])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(key: str) -> None:
    upstream = UpstreamSettings(url="http://127.0.0.1:9/v1", key=key)
    with pytest.raises(OperatorError, match="PERDURE_UPSTREAM_KEY") as caught:
        ChatCompletionsModel("default", upstream, read_settings(), PlayedClock())
    assert key not in str(caught.value)


def test_a_scripted_failure_comes_over_http_with_its_wait() -> None:
    clock = PlayedClock()

    async def use(_: ScriptedServer, model: ChatCompletionsModel) -> None:
        pieces = await gathered(model, asking())
        assert pieces[0] == TextDelta("there")

    fail = {"status": 429, "message": "Later.", "retry_after": 7, "times": 1}
    scripted({"otherwise": {"fail": fail, "say": "there"}}, use, clock=clock)
    assert clock.slept == [7.0]
