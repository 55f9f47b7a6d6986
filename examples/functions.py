"""노트북에서 쓰는 도우미 함수들. Helpers for notebooks that talk to the Assistants API.

스레드나 어시스턴트는 객체로 넘겨도 되고 id 문자열로 넘겨도 됩니다. 클라이언트는 처음 쓸 때 OPENAI_BASE_URL과
OPENAI_API_KEY를 읽어 한 번만 만듭니다.

Wherever a thread, a run or an assistant is asked for, the object and its id are equally good. The client is made once,
at its first use, from OPENAI_BASE_URL and OPENAI_API_KEY.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from functools import cache
from typing import Protocol

from openai import OpenAI
from openai.pagination import SyncCursorPage
from openai.types.beta import Assistant, Thread
from openai.types.beta.threads import Message, Run
from pydantic import BaseModel

__all__ = [
    "ask",
    "create_new_thread",
    "create_thread_and_run",
    "get_response",
    "print_message",
    "show_json",
    "submit_message",
    "wait_on_run",
]

SEPARATOR = "---" * 20
PAGE_SIZE = 100
WAIT_SECONDS = 600.0
POLL_SECONDS = 0.5

_MOVING = {"queued", "in_progress", "cancelling"}
_IN_WORDS = {
    "requires_action": "함수 결과를 기다립니다 (waits for the output of functions)",
    "cancelled": "취소되었습니다 (was cancelled)",
    "failed": "실패했습니다 (failed)",
    "expired": "시간이 지나 만료되었습니다 (expired)",
    "incomplete": "답이 중간에서 끊겼습니다 (the answer is incomplete)",
}


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


@cache
def _client() -> OpenAI:
    return OpenAI()


def _id_of(thing: _Identified | str) -> str:
    """Return the id of an object, or the id itself. Raises TypeError for anything else."""
    found = thing if isinstance(thing, str) else getattr(thing, "id", None)
    if not isinstance(found, str):
        raise TypeError(f"객체나 id 문자열이 필요합니다 (an object or its id is needed), not {thing!r}")
    return found


def show_json(obj: BaseModel) -> None:
    """객체를 JSON 모양으로 보여 줍니다. Show an API object as JSON: as a notebook does, or as text elsewhere."""
    value = json.loads(obj.model_dump_json())
    try:
        from IPython import get_ipython  # noqa: PLC0415  # outside a notebook it need not be there
        from IPython.display import display  # noqa: PLC0415
    except ImportError:
        shell = None
    else:
        shell = get_ipython()
    if shell is None:
        print(json.dumps(value, ensure_ascii=False, indent=2))
    else:
        display(value)  # type: ignore[no-untyped-call]  # IPython leaves it without annotations


def create_new_thread() -> Thread:
    """빈 스레드를 만듭니다. Create an empty thread."""
    return _client().beta.threads.create()


def submit_message(assistant_id: Assistant | str, thread: Thread | str, user_message: str) -> Run:
    """메시지를 넣고 실행을 시작합니다. Add a user's message and start a run; the run comes back queued."""
    return _say(assistant_id, thread, user_message)[1]


def _say(assistant: Assistant | str, thread: Thread | str, text: str) -> tuple[Message, Run]:
    threads, thread_id = _client().beta.threads, _id_of(thread)
    message = threads.messages.create(thread_id, role="user", content=text)
    return message, threads.runs.create(thread_id, assistant_id=_id_of(assistant))


def create_thread_and_run(user_input: str, assistant_id: Assistant | str) -> tuple[Thread, Run]:
    """새 스레드에서 질문을 시작합니다. Begin a thread with a question. It does not wait: begin several in a row."""
    thread = create_new_thread()
    return thread, submit_message(assistant_id, thread, user_input)


def wait_on_run(run: Run | str, thread: Thread | str, timeout: float | None = WAIT_SECONDS) -> Run:
    """실행이 멈출 때까지 기다립니다. Wait until the run moves no more, and return it as it is then.

    Anything but `completed` is also said in words. After `timeout` seconds (None: never) comes a TimeoutError; the run
    itself goes on, and can be waited for again.
    """
    end = None if timeout is None else time.monotonic() + timeout
    thread_id, run_id = _id_of(thread), _id_of(run)
    while True:
        current = _client().beta.threads.runs.retrieve(run_id, thread_id=thread_id)
        if current.status not in _MOVING:
            break
        if end is not None and time.monotonic() + POLL_SECONDS > end:
            raise TimeoutError(
                f"{timeout:g}초 안에 끝나지 않았습니다 (the run {run_id} is still {current.status}, "
                "and goes on: wait again or cancel it)"
            )
        time.sleep(POLL_SECONDS)
    if current.status != "completed":
        print(_in_words(current))
    return current


def _in_words(run: Run) -> str:
    why = ""
    if run.required_action is not None:
        calls = run.required_action.submit_tool_outputs.tool_calls
        why = ", ".join(f"{call.function.name}({call.function.arguments})" for call in calls)
    elif run.last_error is not None:
        why = f"{run.last_error.code}: {run.last_error.message}"
    elif run.incomplete_details is not None:
        why = run.incomplete_details.reason or ""
    return f"[{run.status}] {run.id}: {_IN_WORDS.get(run.status, run.status)}{why and ' - '}{why}"


def get_response(thread: Thread | str) -> SyncCursorPage[Message]:
    """모든 메시지를 오래된 것부터 돌려줍니다. Return all messages, oldest first, however many pages they fill."""
    return _messages_after(thread, None)


def _messages_after(thread: Thread | str, message: Message | None) -> SyncCursorPage[Message]:
    threads, thread_id = _client().beta.threads, _id_of(thread)
    if message is None:
        whole = threads.messages.list(thread_id, order="asc", limit=PAGE_SIZE)
    else:
        whole = threads.messages.list(thread_id, order="asc", limit=PAGE_SIZE, after=message.id)
    page = whole
    while page.has_next_page():
        page = page.get_next_page()
        whole.data.extend(page.data)
    whole.has_more = False
    return whole


def print_message(response: Iterable[Message]) -> None:
    """메시지를 차례로 출력합니다. Print messages in turn, and a line below the last."""
    for message in response:
        print(f"[{message.role.upper()}]\n{_content_of(message)}\n")
    print(SEPARATOR)


def _content_of(message: Message) -> str:
    shown = []
    for part in message.content:
        if part.type == "text":
            shown.append(part.text.value)
        elif part.type == "image_file":
            shown.append(f"[그림 image: {part.image_file.file_id}]")
        elif part.type == "image_url":
            shown.append(f"[그림 image: {part.image_url.url}]")
        else:
            shown.append(part.refusal)
    return "\n".join(shown) or "(내용 없음 / empty)"


def ask(assistant_id: Assistant | str, thread_id: Thread | str, user_message: str) -> Run:
    """질문하고 기다려서 질문과 답을 출력합니다. Ask, wait, and print the question with what was said after it."""
    message, run = _say(assistant_id, thread_id, user_message)
    run = wait_on_run(run, thread_id)
    print_message([message, *_messages_after(thread_id, message)])
    return run
