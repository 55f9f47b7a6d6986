"""The example notebook, its helpers, and a tutorial written for the hosted API, each against a running server."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from openai.types.beta.threads import Run
from openai.types.beta.threads.run import RequiredAction

from perdure.models.weights import DEFAULT_NAME, find_weights
from perdure.settings import read_settings
from tests.run_tutorial import read_cells, shape_of
from tests.server import Client, running_server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPT = ROOT / "tests" / "scripts" / "math_tutor.json"
RUNNER = ROOT / "tests" / "run_tutorial.py"
LINE = "---" * 20


@pytest.fixture(scope="module")
def tutor_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose scripted model plays the math tutor."""
    with running_server(tmp_path_factory.mktemp("tutor") / "data", script=SCRIPT) as url:
        yield url


@pytest.fixture(scope="module")
def builtin_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the real built-in model, whose answers are kept short."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the built-in model's runtime is not installed: pip install 'perdure[builtin]'")
    data = tmp_path_factory.mktemp("builtin") / "data"
    found = find_weights(read_settings(data=data, builtin_model=DEFAULT_NAME))
    if found is None:
        pytest.skip("the built-in model's weights are not installed: see `perdure models pull smollm2`")
    with running_server(data, builtin_model=str(found[1]), builtin_answer_tokens=24) as url:
        yield url


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Point everything that reads the environment at a server."""

    def point(url: str) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")

    return point


@pytest.fixture
def functions(tutor_url: str, environment: Callable[[str], None]) -> Iterator[Any]:
    """A fresh examples/functions.py, which makes its client from the environment."""
    environment(tutor_url)
    spec = importlib.util.spec_from_file_location("functions", EXAMPLES / "functions.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.POLL_SECONDS = 0.02
    yield module
    if module._client.cache_info().currsize:
        module._client().close()


def execute(notebook: Path) -> list[str]:
    """Run a notebook in a kernel of its own; return what each code cell printed."""
    cells = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]  # it has annotations in part
    nbformat.validate(cells)
    assert not any(cell.get("outputs") for cell in cells.cells), "the example is kept without outputs"
    NotebookClient(cells, timeout=60, resources={"metadata": {"path": str(notebook.parent)}}).execute()
    return [_printed(cell) for cell in cells.cells if cell.cell_type == "code"]


def _printed(cell: Any) -> str:
    errors = [one for one in cell.outputs if one.output_type == "error" or one.get("name") == "stderr"]
    assert errors == []
    return "".join(one.get("text", "") or str(one.get("data", "")) for one in cell.outputs)


def test_the_example_notebook_runs_with_the_scripted_model(tutor_url: str, environment: Callable[[str], None]) -> None:
    environment(tutor_url)
    printed = execute(EXAMPLES / "assistants_math_tutor.ipynb")
    setup, tutor, question, follow_up, three, answers, thanks, steps, once_more, end = printed
    assert tutor_url in setup
    assert "'object': 'assistant'" in tutor
    assert question.startswith("처음 상태: queued\n나중 상태: completed\n[USER]\n")
    assert "[ASSISTANT]\n그럼요. 11을 오른쪽으로 옮기면 `3x = 3`이 되니, 답은 `x = 1`입니다.\n" in question
    assert shape_of(follow_up) == ["[ASSISTANT]", LINE]
    assert "2. x 앞의 3을 없애려고" in follow_up
    assert three == "시작할 때: queued queued queued\n"
    assert shape_of(answers) == ["[USER]", "[ASSISTANT]", LINE] * 2
    assert "`x = 5`입니다" in answers
    assert "빗변의 제곱" in answers
    assert shape_of(thanks) == ["[USER]", "[ASSISTANT]", "[USER]", "[ASSISTANT]", LINE]
    assert "[ASSISTANT]\n천만에요! 막히는 문제가 있으면 또 물어보세요.\n" in thanks
    assert steps.startswith("message_creation completed 토큰: ")
    assert shape_of(once_more) == ["[USER]", "[ASSISTANT]", LINE]
    assert "`x = 6`입니다" in once_more
    assert end == "선생님을 지웠습니다: True\n"


def test_the_example_notebook_runs_with_the_builtin_model(builtin_url: str, environment: Callable[[str], None]) -> None:
    environment(builtin_url)
    printed = execute(EXAMPLES / "assistants_math_tutor.ipynb")
    assert shape_of(printed[5]) == ["[USER]", "[ASSISTANT]", LINE] * 2
    assert shape_of(printed[6]) == ["[USER]", "[ASSISTANT]", "[USER]", "[ASSISTANT]", LINE]
    assert printed[-1] == "선생님을 지웠습니다: True\n"


def tutorial() -> Path:
    """The text of the tutorial, which is not ours to ship."""
    given = os.environ.get("PERDURE_TUTORIAL")
    path = Path(given) if given else ROOT.parent / "shared" / "tutorial-notebook-ko.txt"
    if not path.is_file():
        pytest.skip("no tutorial's text here: set PERDURE_TUTORIAL to a notebook's text")
    return path


def run_tutorial(path: Path, url: str) -> str:
    """Run a tutorial's cells in a process of their own; return what they printed."""
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(path)],
        env={**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "test-key", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_tutorial_for_the_hosted_api_runs_with_the_scripted_model(tutor_url: str) -> None:
    printed = run_tutorial(tutorial(), tutor_url)
    assert "the printed output of 2 has the shape that the text shows" in printed
    assert "[ASSISTANT]\n선형대수는 벡터와 행렬로" in printed
    assert "[ASSISTANT]\n천만에요!" in printed
    assert "[ASSISTANT]\nSure: `1 + 20 = 21`.\n" in printed


def test_a_tutorial_for_the_hosted_api_runs_with_the_builtin_model(builtin_url: str) -> None:
    printed = run_tutorial(tutorial(), builtin_url)
    assert "the printed output of 2 has the shape that the text shows" in printed
    assert "[ASSISTANT]\n\n" not in printed


def test_prose_and_output_below_a_cell_are_no_code() -> None:
    text = "말\n\nIn [1]:\n! pip install x\na = (1,\n\n  2)\n\n출력 입니다\n\nIn [None]:\nb = 3\n[USER]\nhi\n"
    first, second = read_cells(text)
    assert (first.code.strip(), first.shown) == ("a = (1,\n\n  2)", "출력 입니다")
    assert (second.code.strip(), second.shown) == ("b = 3", "[USER]\nhi")


def test_a_question_that_is_shown_twice_counts_once() -> None:
    block = "[USER]\nhi\n\n"
    assert shape_of(f"{block}{block}[ASSISTANT]\nho\n\n{LINE}\n") == ["[USER]", "[ASSISTANT]", LINE]


def test_star_import_gives_the_helpers_and_nothing_else(functions: Any) -> None:
    helpers = "show_json submit_message create_thread_and_run wait_on_run get_response print_message"
    assert set(functions.__all__) == {*helpers.split(), "create_new_thread", "ask"}


def test_objects_and_ids_are_equally_good(functions: Any, tutor_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(tutor_url) as client:
        tutor = client.beta.assistants.create(model="gpt-4-turbo-preview")
    thread, run = functions.create_thread_and_run("선형대수가 뭐예요?", tutor)
    assert run.status == "queued"
    assert functions.wait_on_run(run.id, thread.id).status == "completed"
    assert functions.ask(tutor, thread, "감사합니다").status == "completed"
    assert functions.ask(tutor.id, thread.id, "1 + 20").status == "completed"
    assert [one.role for one in functions.get_response(thread.id).data] == ["user", "assistant"] * 3
    assert shape_of(capsys.readouterr().out) == ["[USER]", "[ASSISTANT]", LINE] * 2
    with pytest.raises(TypeError, match="an object or its id is needed"):
        functions.get_response((thread.id,))


def test_a_thread_of_more_than_one_page_is_shown_whole(
    functions: Any, tutor_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    functions.PAGE_SIZE = 4
    with Client(tutor_url) as client:
        tutor = client.beta.assistants.create(model="gpt-4-turbo-preview")
        first = [{"role": "user", "content": f"질문 {number}"} for number in range(25)]
        thread = client.beta.threads.create(messages=first)  # type: ignore[arg-type]  # plain dicts
    functions.ask(tutor, thread, "감사합니다")
    assert capsys.readouterr().out == (
        f"[USER]\n감사합니다\n\n[ASSISTANT]\n천만에요! 막히는 문제가 있으면 또 물어보세요.\n\n{LINE}\n"
    )
    whole = functions.get_response(thread)
    assert len(whole.data) == len(list(whole)) == 27


def test_images_and_empty_content_are_printed(
    functions: Any, tutor_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/triangle.png"}}
    with Client(tutor_url) as client:
        thread = client.beta.threads.create(
            messages=[{"role": "user", "content": [picture, {"type": "text", "text": "무엇인가요?"}]}]  # type: ignore[list-item]
        )
    (message,) = functions.get_response(thread).data
    functions.print_message([message, message.model_copy(update={"content": []})])
    shown = capsys.readouterr().out
    assert "[그림 image: https://example.com/triangle.png]\n무엇인가요?\n" in shown
    assert "(내용 없음 / empty)" in shown


def test_what_did_not_complete_is_said_in_words(
    tmp_path: Path, environment: Callable[[str], None], functions: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.json"
    script.write_text(
        """{"rules": [{"when": "fail", "fail": {"status": 400, "message": "No, thank you."}},
                      {"when": "slow", "say": "late", "first_delay_seconds": 2}]}"""
    )
    with running_server(tmp_path / "data", script=script) as url:
        environment(url)
        with Client(url) as client:
            tutor = client.beta.assistants.create(model="gpt-4-turbo-preview")
        thread, run = functions.create_thread_and_run("fail", tutor)
        assert functions.wait_on_run(run, thread).status == "failed"
        said = capsys.readouterr().out
        assert said.startswith(f"[failed] {run.id}: 실패했습니다 (failed) - ")
        assert "No, thank you." in said
        thread, run = functions.create_thread_and_run("slow", tutor)
        with pytest.raises(TimeoutError, match="wait again or cancel it"):
            functions.wait_on_run(run, thread, timeout=0.1)
        assert functions.wait_on_run(run, thread).status == "completed"
        functions._client().close()
        functions._client.cache_clear()


def test_a_run_that_waits_for_functions_names_them(functions: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "plot", "arguments": '{"x": 1}'}}
    run = Run.model_construct(
        id="run_1",
        status="requires_action",
        required_action=RequiredAction.model_validate(
            {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": [call]}}
        ),
    )
    assert functions._in_words(run).endswith('(waits for the output of functions) - plot({"x": 1})')
