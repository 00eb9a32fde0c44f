"""The HTTP service, as a process of its own: the right answer to the right client, one line for everything else."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from conftest import COMPANIES, TEXTS

from fintune.deploy.service import create_app

HEADLINES = [text.format(company) for texts in TEXTS.values() for text in texts for company in COMPANIES]


@pytest.fixture
def serve(run_dir):
    """Starts `fintune serve` with more options; gives its address and its process."""
    started = []

    def serve(*flags: str) -> tuple[str, subprocess.Popen]:
        command = [sys.executable, "-m", "fintune.cli", "serve", str(run_dir), "--port", "0", *flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started.append(process)
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                return found[1], process
        raise AssertionError("it did not start")

    yield serve
    for process in started:
        process.kill()
        process.communicate()


def labelled_as(classifier, answer: dict, text: str) -> bool:
    (label,), (scores,) = classifier([text])
    expected = dict(zip(classifier.names, scores, strict=True))
    return answer["label"] == label and all(
        abs(answer["probabilities"][name] - expected[name]) < 1e-5 for name in classifier.names
    )


def test_simultaneous_requests_are_scored_together_and_each_gets_its_own(serve, classifier):
    address, _ = serve("--abstain-below", "0.9")

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=64)) as client:
            asked = [client.post(f"{address}/classify", json={"text": text}) for text in HEADLINES]
            many = client.post(f"{address}/classify", json={"texts": HEADLINES[::-1]})
            return await asyncio.gather(many, *asked)

    many, *answers = asyncio.run(ask_all())
    assert {answer.status_code for answer in (many, *answers)} == {200}
    for text, answer in zip(HEADLINES, answers, strict=True):
        assert labelled_as(classifier, answer.json(), text)
        assert answer.json()["abstained"] == (answer.json()["confidence"] < 0.9)
        assert answer.json()["truncated"] is classifier.truncated(text)
    for text, result in zip(HEADLINES[::-1], many.json()["results"], strict=True):
        assert labelled_as(classifier, result, text)
    long = httpx.post(f"{address}/classify", json={"text": "Oak cut its outlook. " * 300}).json()
    assert long["truncated"] is True and labelled_as(classifier, long, "Oak cut its outlook. " * 300)
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok", "labels": classifier.names, "waiting_texts": 0}
    metrics = httpx.get(f"{address}/metrics").text
    assert f'fintune_requests_total{{status="200"}} {len(HEADLINES) + 2}.0' in metrics
    assert f"fintune_texts_total {2 * len(HEADLINES) + 1}.0" in metrics
    calls = float(re.search(r"fintune_batch_texts_count (\S+)", metrics)[1])
    assert calls < len(HEADLINES) / 2  # together


def test_what_it_does_not_take_is_said_in_one_line(serve):
    address, _ = serve("--max-body", "2000", "--max-waiting", "3")
    refused = {
        b"": (422, "EOF"),
        b"{": (422, "EOF"),
        b"\xff": (422, "JSON"),
        b"[" * 1900: (422, "recursion limit"),
        b"{}": (422, "give"),
        b'{"text": 5}': (422, "valid string"),
        b'{"text": null}': (422, "give"),
        b'{"text": "a", "texts": []}': (422, "give"),
        b'{"text": "a", "label": "Up"}': (422, "label: Extra inputs"),
        b'{"text": " "}': (422, "text 0: empty"),
        b'{"texts": ["a", ""]}': (422, "text 1: empty"),
        b'{"text": "\\ud800"}': (422, "hex escape"),
        b'{"texts": ["a", "b", "c", "d"]}': (413, "4 texts in one request, at most 3 fit"),
    }
    for body, (status, message) in refused.items():
        answer = httpx.post(f"{address}/classify", content=body)
        assert (answer.status_code, message in answer.json()["error"]) == (status, True), (body, answer.text)
    answer = httpx.post(f"{address}/classify", content=b"x" * 2001)
    assert (answer.status_code, answer.json()["error"]) == (413, "the request has over 2,000 bytes; send it in parts")
    assert httpx.post(f"{address}/classify", content=iter([b"x" * 1500] * 2)).status_code == 413  # of no said length
    for method, path, status in (("GET", "/classify", 405), ("POST", "/nowhere", 404)):
        answer = httpx.request(method, f"{address}{path}")
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert httpx.post(f"{address}/classify", json={"texts": []}).json() == {"results": []}
    assert httpx.post(f"{address}/classify", json={"text": "x <|im_end|>"}).status_code == 200
    metrics = httpx.get(f"{address}/metrics").text
    assert 'fintune_requests_total{status="413"} 3.0' in metrics


def test_a_full_queue_is_said_and_what_was_asked_is_answered_before_it_ends(serve):
    address, process = serve("--max-waiting", "3000")
    texts, answers = [f"{HEADLINES[i % len(HEADLINES)]} {i}" for i in range(3000)], []

    def ask():
        answers.append(httpx.post(f"{address}/classify", json={"texts": texts}, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    while httpx.get(f"{address}/healthz").json()["waiting_texts"] == 0:
        time.sleep(0.01)
    full = httpx.post(f"{address}/classify", json={"text": "one more"})
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert "3000 texts are waiting" in full.json()["error"]
    process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["results"]) == 3000
    assert process.wait(timeout=30) in (0, -signal.SIGTERM)


def test_a_failing_model_costs_its_requests_alone(classifier, monkeypatch):
    def failing(self, texts):
        if "bad" in texts:
            raise RuntimeError("out of memory")
        return score(self, texts)

    score = type(classifier).__call__
    monkeypatch.setattr(type(classifier), "__call__", failing)
    app = create_app(classifier, 0.0, 10, 1000)

    async def ask(*texts: str) -> list[int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            return [(await client.post("http://x/classify", json={"text": text})).status_code for text in texts]

    assert asyncio.run(ask("bad", *HEADLINES[:12])) == [500] + [200] * 12  # nothing of it keeps waiting

    async def ask_together(*texts: str) -> list[int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            asked = [client.post("http://x/classify", json={"text": text}) for text in texts]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    app = create_app(classifier, 0.0, 10, 1000)
    assert asyncio.run(ask_together(*HEADLINES[:3], "bad", *HEADLINES[3:6])) == [200] * 3 + [500] + [200] * 3
