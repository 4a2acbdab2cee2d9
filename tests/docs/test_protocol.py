"""The published schema is the code's, real messages are of its form, and the catalogue of events and metrics is whole."""

from __future__ import annotations

import importlib.util
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest
import trio

from bootc_core.containment import messages
from bootc_core.containment.proxy import _request
from bootc_core.errors import ConfigError, HookError
from bootc_core.hooks.discovery import PluginSource
from bootc_core.models import events
from bootc_core.models.context import Phase, PriorVerdict
from bootc_core.models.image import Attachment, PolicyAnswer
from bootc_core.models.verdict import Deny, Hold, Proceed
from bootc_core.testing import make_image
from bootc_core.testing.contracts import fetched, make_context

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/schemas/plugin-child-v1.schema.json").read_bytes())
VERDICTS = [
    Proceed(),
    Proceed("careful"),
    Hold(datetime.now(UTC) + timedelta(hours=1), "later"),
    Deny("no"),
]
POLICIES = [
    PolicyAnswer(True, "signed", "rule", True, True, (("key", "k"),)),
    PolicyAnswer(False, "no", could_check=False, hint="look there"),
    PolicyAnswer(None, ""),
]


def valid(line: bytes) -> None:
    jsonschema.validate(json.loads(line), SCHEMA)


def answer(value) -> bytes:
    return json.dumps({"protocol": 1, **value}).encode()


def test_files_are_what_the_code_says(tmp_path):
    spec = importlib.util.spec_from_file_location("protocol", ROOT / "docs/generate_protocol.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.made().items():
        assert path.read_text() == text, "run: python docs/generate_protocol.py"
    assert module.main(["--check"]) == 0
    module.EVENTS = tmp_path / "events.md"
    assert module.main(["--check"]) == 1


def test_every_event_is_in_the_catalogue():
    text = (ROOT / "docs/events.md").read_text()
    for kind in events.Event.__subclasses__():
        assert f"| `{kind.name}` |" in text


async def image(path):
    from dataclasses import replace

    async def read(kind):
        if kind == "lookaside":
            raise ConfigError("no place is configured")
        return (Attachment("text/plain", b"\0x", {"a": "b"}, "there"),)

    return replace(await fetched(make_image("1"), path), read_attachments=read)


def test_requests_are_of_its_form_and_arrive_whole(tmp_path):
    prior = PriorVerdict(plugin="x", phase=Phase.FETCH, verdict="hold", until=datetime.now(UTC))
    context = make_context(tmp_path, Phase.STAGE, verdicts=(prior,), reason='ü\n"')
    there = trio.run(image, tmp_path)
    arguments = {"context": context, "phase": Phase.STAGE, "image": there}
    packed = trio.run(messages.pack, arguments)
    line = _request(PluginSource("p", "m", "d", "1", "/x"), "bootc_gate", packed, {"A": "1"})
    assert line.count(b"\n") == 1
    valid(line)
    found = messages.unpack(json.loads(line)["arguments"])
    assert found["context"] == context
    assert found["phase"] is Phase.STAGE
    assert found["image"].digest == there.digest
    assert found["image"].summary() == there.summary()
    (one,) = trio.run(found["image"].read_attachments, "cosign")
    assert (one.payload, one.annotations) == (b"\0x", {"a": "b"})
    with pytest.raises(Exception, match="no place is configured"):
        trio.run(found["image"].read_attachments, "lookaside@sha256:1")
    for kind in events.Event.__subclasses__():
        valid(json.dumps({"event": {"event": kind.name, "transaction": "t"}}).encode())


@pytest.mark.parametrize("said", VERDICTS)
def test_verdicts_survive(said):
    line = answer({"answer": messages.pack_answer("bootc_gate", said)})
    valid(line)
    assert messages.parse_answer("p", "bootc_gate", line) == said


@pytest.mark.parametrize("said", POLICIES)
def test_policy_answers_survive(said):
    line = answer({"answer": messages.pack_answer("bootc_verify", said)})
    valid(line)
    assert messages.parse_answer("p", "bootc_verify", line) == said


def test_errors_survive_with_all_their_parts():
    problem = ConfigError("wrong", reference="bad", expected="a", found="b\x1b[2J", hint="c")
    line = answer({"error": messages.pack_error(problem)})
    valid(line)
    with pytest.raises(ConfigError) as caught:
        messages.parse_answer("p", "bootc_gate", line)
    assert caught.value.to_json() == {**problem.to_json(), "found": "b\\x1b[2J"}
    line = answer({"error": messages.pack_error(ValueError("x"))})
    valid(line)
    with pytest.raises(Exception, match="plugin p broke in bootc_gate"):
        messages.parse_answer("p", "bootc_gate", line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello",
        b"[]",
        b"{}",
        b'{"protocol": 1}',
        b'{"protocol": 2, "answer": null}',
        answer({"answer": True}),
        answer({"answer": {"verdict": "perhaps"}}),
        answer({"answer": {"verdict": "hold", "reason": "x"}}),
        answer({"answer": {"verdict": "hold", "reason": "x", "until": "2026-01-01T00:00:00"}}),
        answer({"answer": {"verdict": "hold", "reason": "x", "until": 7}}),
        answer({"answer": {"verdict": "deny", "reason": 7}}),
        answer({"answer": {"verdict": "deny", "extra": 7}}),
        answer({"error": {}}),
        answer({"error": 7}),
        b'{"protocol": 1, "answer": null, "answer": {"verdict": "proceed"}}',
        b'{"protocol": 1, "answer": ' + b"[" * 100000,
    ],
)
def test_what_is_no_answer_is_an_error(line):
    with pytest.raises(HookError):
        messages.parse_answer("p", "bootc_gate", line)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"accept": 1},
        {"accept": "true"},
        {"accept": True, "reason": 7},
        {"accept": True, "cryptographic": "yes"},
        {"accept": True, "evidence": [["a"]]},
        {"accept": True, "evidence": "ab"},
        {"accept": True, "more": 1},
        {"accept": 0},
        {"accept": []},
    ],
)
def test_what_is_no_policy_answer_is_an_error(said):
    with pytest.raises(HookError):
        messages.parse_answer("p", "bootc_verify", answer({"answer": said}))
