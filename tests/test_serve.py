"""The HTTP service, as a process of its own: the right answer to the right client, one line for everything else."""

import asyncio
import contextlib
import gzip
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from conftest import COMPANIES, TEXTS

from fintune.cli import command
from fintune.deploy.batcher import SMALL, Batcher
from fintune.deploy.service import create_app
from fintune.errors import UserError

HEADLINES = [text.format(company) for texts in TEXTS.values() for text in texts for company in COMPANIES]
JSON = {"Content-Type": "application/json"}
BODY = b'{"text": "Alder raised its dividend again"}'


def start(run_dir, *flags: str) -> tuple[str, subprocess.Popen]:
    """`fintune serve` with more options: its address and its process."""
    command = [sys.executable, "-m", "fintune.cli", "serve", str(run_dir), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"running on (http://\S+)", line):
            return found[1], process
    raise AssertionError("it did not start")


@pytest.fixture
def serve(run_dir):
    """Starts services of their own; see `start`."""
    started = []

    def serve(*flags: str) -> tuple[str, subprocess.Popen]:
        started.append(start(run_dir, *flags))
        return started[-1]

    yield serve
    for _, process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def address(run_dir):
    """Of a service that several tests ask."""
    names = "--allowed-host", "labels.example.com", "--allowed-host", "Intern"
    address, process = start(run_dir, *names, "--max-waiting", "1000", "--max-body", str(2**23))
    yield address
    process.kill()
    process.communicate()


def counted(address: str, status: int) -> float:
    """Requests of /classify that were answered with this status."""
    found = re.search(rf'fintune_requests_total{{status="{status}"}} (\S+)', httpx.get(f"{address}/metrics").text)
    return float(found[1]) if found else 0


def send(address: str, *lines: str, body: bytes = b"") -> bytes:
    """What comes back for a request of these lines as they are, until the service closes or is silent for a second."""
    with socket.create_connection(address.removeprefix("http://").split(":"), timeout=1) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode() + body)
        received = b""
        with contextlib.suppress(TimeoutError):
            while chunk := connection.recv(65536):
                received += chunk
        return received


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
        answer = httpx.post(f"{address}/classify", content=body, headers=JSON)
        assert (answer.status_code, message in answer.json()["error"]) == (status, True), (body, answer.text)
    answer = httpx.post(f"{address}/classify", content=b"x" * 2001, headers=JSON)
    assert (answer.status_code, answer.json()["error"]) == (413, "the request has over 2,000 bytes; send it in parts")
    of_no_said_length = httpx.post(f"{address}/classify", content=iter([b"x" * 1500] * 2), headers=JSON)
    assert of_no_said_length.status_code == 413
    for method, path, status in (
        ("GET", "/classify", 405),
        ("POST", "/nowhere", 404),
        ("POST", "/classify/", 404),
        ("GET", "/healthz/", 404),
    ):
        answer = httpx.request(method, f"{address}{path}")
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert httpx.post(f"{address}/classify", json={"texts": []}).json() == {"results": []}
    assert httpx.post(f"{address}/classify", json={"text": "x <|im_end|>"}).status_code == 200
    metrics = httpx.get(f"{address}/metrics").text
    assert 'fintune_requests_total{status="413"} 3.0' in metrics


def test_a_full_queue_is_said_and_what_was_asked_is_answered_before_it_ends(serve):
    address, process = serve("--max-waiting", "3000", "--graceful-timeout", "60")
    texts, answers = [f"{HEADLINES[i % len(HEADLINES)]} {i}" for i in range(3000)], []

    def ask():
        answers.append(httpx.post(f"{address}/classify", json={"texts": texts}, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    while httpx.get(f"{address}/healthz").json()["waiting_texts"] == 0:
        time.sleep(0.01)
    full = httpx.post(f"{address}/classify", json={"texts": texts[: SMALL + 1]})
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert "3000 texts of yours are waiting" in full.json()["error"]
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

    score = type(classifier).answers
    monkeypatch.setattr(type(classifier), "answers", failing)
    app = create_app(classifier, 0.0, 10, 1000, "x")

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

    app = create_app(classifier, 0.0, 10, 1000, "x")
    assert asyncio.run(ask_together(*HEADLINES[:3], "bad", *HEADLINES[3:6])) == [200] * 3 + [500] + [200] * 3


def test_a_body_is_json_in_utf_8_and_nothing_else(address, classifier):
    before = counted(address, 415)
    text = "Alder raised its dividend again"
    taken = {
        "application/json": b"\xef\xbb\xbf" + BODY,
        "application/json; charset=utf-8": BODY,
        'Application/JSON;Charset="UTF-8"': BODY,
        "application/json;charset=us-ascii": BODY,
    }
    for kind, body in taken.items():
        answer = httpx.post(f"{address}/classify", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 200 and labelled_as(classifier, answer.json(), text), (kind, answer.text)
    many = httpx.post(f"{address}/classify", content=b'\xef\xbb\xbf{"texts": ["a", "b"]}', headers=JSON)
    assert len(many.json()["results"]) == 2
    identity = httpx.post(f"{address}/classify", content=BODY, headers=JSON | {"Content-Encoding": "identity"})
    assert identity.status_code == 200

    foreign = '{"text": "Schön"}'
    refused = [
        ({}, BODY, "no Content-Type; send JSON with the header 'Content-Type: application/json'"),
        ({"Content-Type": "text/plain"}, BODY, "Content-Type: application/json"),
        ({"Content-Type": "text/plain; application/json"}, BODY, "Content-Type: application/json"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, BODY, "Content-Type: application/json"),
        ({"Content-Type": "application/json, text/plain"}, BODY, "Content-Type: application/json"),
        ({"Content-Type": "application/json; charset=iso-8859-1"}, foreign.encode("latin-1"), "'iso-8859-1' is not"),
        ({"Content-Type": "application/json; charset=utf-16"}, foreign.encode("utf-16"), "'utf-16' is not"),
        ({"Content-Type": "application/json; charset=utf-8; charset=cp1252"}, BODY, "'cp1252' is not"),
        (JSON | {"Content-Encoding": "gzip"}, gzip.compress(BODY), "'gzip' is not"),
        (JSON | {"Content-Encoding": "br"}, BODY, "'br' is not"),
        (JSON | {"Content-Encoding": "identity, deflate"}, BODY, "'identity, deflate' is not"),
    ]
    for headers, body, message in refused:
        answer = httpx.post(f"{address}/classify", content=body, headers=headers)
        assert (answer.status_code, message in answer.json()["error"]) == (415, True), (headers, answer.text)
        assert "\n" not in answer.json()["error"]
    assert counted(address, 415) - before == len(refused)


def test_only_requests_that_are_meant_for_it_are_let_in(address):
    before = counted(address, 403)
    port = address.split(":")[-1]
    asked = [
        (200, {"Host": f"localhost:{port}"}),
        (200, {"Host": "LOCALHOST"}),
        (200, {"Host": f"127.0.0.1:{port}"}),
        (200, {"Host": f"[::1]:{port}"}),
        (200, {"Host": "labels.example.com"}),
        (200, {"Host": "intern:80"}),
        (400, {"Host": "evil.example"}),
        (400, {"Host": "localhost.evil.example"}),
        (400, {"Host": "localhost@evil.example"}),
        (400, {"Host": "evil.labels.example.com"}),
        (400, {"Host": "10.0.0.1"}),
        (400, {"Host": ""}),
        (200, {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}),
        (200, {"Host": f"127.0.0.1:{port}", "Origin": "https://labels.example.com"}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": ""}),
        (403, {"Origin": "chrome-extension://labels.example.com"}),
        (403, {"Host": f"localhost:{port}", "Origin": f"file://localhost:{port}"}),
        (403, [("Origin", "https://labels.example.com"), ("Origin", "http://evil.example")]),
        (403, {"Host": f"localhost:{port}", "Origin": "http://localhost:3000"}),
        (403, {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}.evil.example"}),
        (403, {"Origin": "https://labels.example.com.evil.example"}),
    ]
    for status, headers in asked:
        given = headers.items() if isinstance(headers, dict) else headers
        answer = httpx.post(f"{address}/classify", content=BODY, headers=[*JSON.items(), *given])
        assert (answer.status_code, "error" in answer.json()) == (status, status != 200), (headers, answer.text)
    for method, path in (("GET", "/healthz"), ("GET", "/metrics"), ("OPTIONS", "/classify")):
        assert httpx.request(method, address + path, headers={"Origin": "http://evil.example"}).status_code == 403
        assert httpx.request(method, address + path, headers={"Host": "evil.example"}).status_code == 400
    assert counted(address, 403) - before == 10  # nine of the loop above, one with OPTIONS


def test_on_all_addresses_it_is_called_by_any_of_them_but_by_no_name(classifier):
    async def ask(host: str) -> list[int]:
        app = create_app(classifier, 0.0, 10, 1000, host)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            names = "10.1.2.3", "[fd00::1]", "localhost", "evil.example"
            return [(await client.get(f"http://{name}/healthz")).status_code for name in names]

    assert asyncio.run(ask("0.0.0.0")) == asyncio.run(ask("::")) == [200, 200, 200, 400]
    assert asyncio.run(ask("10.1.2.3")) == [200, 400, 200, 400]


def test_a_request_whose_end_can_be_read_in_two_ways_is_refused_with_what_follows(address):
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    hidden = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    start, kind = ("POST /classify HTTP/1.1", "Host: localhost"), "Content-Type: application/json"
    for lines in (
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", f"Content-Length: {len(chunked)}"),
        ("Transfer-Encoding: Chunked", "content-length: 0"),
        ("Content-Length: 4", "Content-Length: 5"),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding : chunked",),
    ):
        received = send(address, *start, kind, *lines, body=chunked + hidden)
        assert received.startswith(b"HTTP/1.1 400 ") and received.count(b"HTTP/1.1 ") == 1, (lines, received)
    assert send(address, *start, kind, "Transfer-Encoding: chunked", body=chunked).startswith(b"HTTP/1.1 200 ")
    for lines in (("Host: evil.example",), ("Transfer-Encoding: chunked", "Content-Length: 4")):
        received = send(address, "POST /nowhere HTTP/1.1", "Host: localhost", *lines, body=chunked + hidden)
        assert received.startswith(b"HTTP/1.1 400 ") and received.count(b"HTTP/1.1 ") == 1, (lines, received)


def test_where_it_cannot_listen_is_said_before_the_model_is_read(run_dir, tmp_path):
    for name in ("metrics.json", "recipe.yaml"):  # a run without its model
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, message in (
            (("--port", port), f"cannot listen on port {port} of '127.0.0.1': Address already in use; give another"),
            (("--host", "localhost", "--port", port), "Address already in use"),
            (("--host", "192.0.2.1", "--port", "0"), "192.0.2.1"),
            (("--host", "no such host", "--port", "0"), "no such host"),
            (("--host", "a..b", "--port", "0"), "a..b"),
            (("--port", "99999"), "'--port': Input should be less"),
            (("--port", "-1"), "'--port': Input should be greater"),
            (("--port", "http"), "'--port': Input should be a valid"),
            (("--allowed-host", "http://labels.example.com", "--port", "0"), "http://labels.example.com"),
            (("--allowed-host", "labels:80", "--port", "0"), "labels:80"),
            (("--allowed-host", "*", "--port", "0"), "'*'"),
        ):
            with pytest.raises(UserError, match=re.escape(message)) as refused:
                command(["serve", str(tmp_path), *flags])
            assert "\n" not in str(refused.value)
    done = subprocess.run(
        [sys.executable, "-m", "fintune.cli", "serve", str(tmp_path), "--port", "99999"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_small_requests_get_in_between_the_parts_of_large_ones(classifier):
    """Whoever else asks, from the same address or another, does not wait for the end of what is asked already."""
    large = [f"{HEADLINES[i % len(HEADLINES)]} {i}" for i in range(600)]
    expected = dict(zip(large, classifier(large)[1], strict=True))

    async def order(clients: dict[str, tuple[str, list[str]]]) -> list[str]:
        batcher = Batcher(classifier, 1000, lambda texts: None)
        finished = []

        async def ask(name: str, client: str, texts: list[str]) -> None:
            scores = await batcher(texts, client)
            assert abs(scores[:, :-2] - [expected[text] for text in texts]).max() < 1e-5
            finished.append(name)

        running = asyncio.create_task(batcher.run())
        await asyncio.gather(*(ask(name, *asked) for name, asked in clients.items()))
        running.cancel()
        assert not batcher.waiting and not batcher._turns
        return finished

    asked = {"large": ("a", large), "another's large": ("b", large[::-1])}
    small = {"same address": ("a", large[:1]), "other address": ("c", large[:3]), "several": ("b", large[:SMALL])}
    finished = asyncio.run(order(asked | small))
    assert set(finished[:3]) == set(small)
    many = {f"large {i}": ("a", large[:100]) for i in range(9)} | {"small": ("b", large[:1])}
    assert asyncio.run(order(many))[0] == "small"


@pytest.mark.parametrize(("seconds", "fewest", "most"), [(0, 512, 512), (0.01, 8, 32)])
def test_a_call_lasts_a_fraction_of_a_second_whatever_the_model_s_speed(seconds, fewest, most):
    class Timed:
        names = ("Up", "Down")

        def answers(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            time.sleep(seconds * len(texts))
            return np.zeros((len(texts), 2)), np.zeros(len(texts), bool), np.zeros(len(texts), int)

    async def sizes() -> list[int]:
        found = []
        batcher = Batcher(Timed(), 4000, found.append)
        running = asyncio.create_task(batcher.run())
        for number in range(3):
            await batcher([f"{number} {row}" for row in range(2000 if seconds == 0 else 150)], "a")
            await batcher([f"one text {number}"], "a")
        running.cancel()
        return found

    assert fewest <= max(asyncio.run(sizes())) <= most


@pytest.mark.parametrize("greedy", [1, 4])
@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
def test_loops_of_large_requests_leave_room_for_another_client(address, greedy, source):
    texts = [f"{HEADLINES[i % len(HEADLINES)]} {i}" for i in range(1000)]
    statuses, end = [], threading.Event()

    def loop():
        while not end.is_set():
            statuses.append(httpx.post(f"{address}/classify", json={"texts": texts}, timeout=60).status_code)
            end.wait(0.2 if statuses[-1] == 429 else 0)

    loops = [threading.Thread(target=loop) for _ in range(greedy)]
    for thread in loops:
        thread.start()
    while httpx.get(f"{address}/healthz").json()["waiting_texts"] == 0:
        time.sleep(0.01)
    with httpx.Client(transport=httpx.HTTPTransport(local_address=source), timeout=60) as other:
        answers = [other.post(f"{address}/classify", json={"text": f"{text} again"}) for text in texts[:15]]
        answers.append(other.post(f"{address}/classify", json={"texts": texts[:SMALL]}))
    end.set()
    for thread in loops:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert set(statuses) <= {200, 429} and 200 in statuses


def test_what_takes_long_to_read_is_refused_at_once(address):
    """Most of these would take the service's only thread for seconds, in which nobody else is answered."""
    bodies = {
        "numbers": b'{"texts": [' + b"1," * 4_000_000 + b"1]}",
        "empty lists": b'{"texts": "a", "x": [' + b"[[]]," * 1_500_000 + b"[]]}",
        "objects": b'{"texts": [' + b"{}," * 2_500_000 + b"{}]}",
        "names": b"{" + b",".join(b'"%d":1' % number for number in range(700_000)) + b"}",
        "strings": b'{"texts": [' + b'"a",' * 2_000_000 + b'"a"]}',
        "escaped": b'{"texts": [' + b'"\\\\",' * 1_000_000 + b'"a"]}',
        "quotes": b'"' * 8_000_000,
    }
    for name, body in bodies.items():
        started = time.perf_counter()
        answer = httpx.post(f"{address}/classify", content=body, headers=JSON, timeout=60)
        assert answer.status_code == 413 and "values in one request" in answer.json()["error"], (name, answer.text)
        assert time.perf_counter() - started < 3, name
    punctuation = '"a", [{,' * 100_000  # in a text
    assert httpx.post(f"{address}/classify", json={"text": punctuation}, timeout=60).status_code == 200


def test_it_ends_although_clients_neither_read_nor_send(serve):
    address, process = serve("--graceful-timeout", "1")
    texts = "[" + ",".join(f'"a {number}"' for number in range(4000)) + "]"
    head = "POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    request = (head.format(len(texts) + 10) + f'{{"texts":{texts}}}').encode()
    with socket.socket() as reads_nothing, socket.socket() as sends_half:
        reads_nothing.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for connection in (reads_nothing, sends_half):
            connection.connect(("127.0.0.1", int(address.split(":")[-1])))
        sends_half.sendall(request[:2000])
        reads_nothing.settimeout(5)
        with contextlib.suppress(TimeoutError):  # the service has stopped reading too
            reads_nothing.sendall(request * 12)
        while httpx.get(f"{address}/metrics").text.count('status="200"') == 0:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        started = time.perf_counter()
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)
        assert time.perf_counter() - started < 10
        assert sends_half.recv(4096).startswith(b"HTTP/1.1 503 ")
    assert "Traceback" not in process.stderr.read()


def test_connections_that_wait_for_nothing_make_room_for_others(serve, classifier):
    """Twice as many as may be open: a request is answered all the same, and none that waits for its answer is cut."""
    address, _ = serve("--max-connections", "10")
    texts = [f"{HEADLINES[i % len(HEADLINES)]} {i}" for i in range(1000)]
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 99\r\n\r\n"
    large = []
    asking = threading.Thread(
        target=lambda: large.append(httpx.post(f"{address}/classify", json={"texts": texts}, timeout=60))
    )
    asking.start()
    while not httpx.get(f"{address}/healthz").json()["waiting_texts"]:
        time.sleep(0.01)
    sent = {"nothing": b"", "half a head": head[:50], "half a body": head + BODY, "reads nothing": b""}
    sent["after an answer"] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for what, start in sent.items():
            for _ in range(20):
                connection = stack.enter_context(socket.socket())
                if what == "reads nothing":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    start = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
                connection.connect(("127.0.0.1", int(address.split(":")[-1])))
                connection.settimeout(0.1)
                with contextlib.suppress(OSError):
                    connection.sendall(start)
            answer = httpx.post(f"{address}/classify", content=BODY, headers=JSON, timeout=20)
            assert answer.status_code == 200, what
            assert labelled_as(classifier, answer.json(), "Alder raised its dividend again")
        asking.join()
    assert large[0].status_code == 200 and len(large[0].json()["results"]) == len(texts)


def test_what_nobody_waits_for_is_not_scored(serve):
    address, _ = serve()
    texts = [f"{HEADLINES[i % len(HEADLINES)]} {i}" for i in range(4000)]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/classify", json={"texts": texts}, timeout=0.3)
    end = time.monotonic() + 10
    while httpx.get(f"{address}/healthz").json()["waiting_texts"] and time.monotonic() < end:
        time.sleep(0.05)
    metrics = httpx.get(f"{address}/metrics").text
    assert 'fintune_requests_total{status="499"} 1.0' in metrics
    assert float(re.search(r"fintune_batch_texts_sum (\S+)", metrics)[1]) < len(texts)
