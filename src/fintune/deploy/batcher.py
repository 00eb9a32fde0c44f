"""Whose texts are scored next: those of many requests together, and no client's before everybody else's."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from fintune.data.inputs import Input, key_of
from fintune.deploy.classifier import Classifier

CALL_SECONDS = 0.2  # that one call of the model should last: whoever comes next waits for it
AT_ONCE = 512  # texts in a call, at most: more raise no throughput
TURN = 8  # texts of a client before the next client's, and the fewest in a call
SMALL = 64  # texts of a request that finds room where a client's large ones have filled theirs


class QueueFull(Exception):
    """More texts of this client would wait than may; its argument is how many do."""


@dataclass(eq=False)
class _Waiting:
    """A request: its texts, how many of them were given to the model, and the scores that came back."""

    texts: list[Input]
    answer: asyncio.Future
    taken: int = 0
    scores: list[np.ndarray] = field(default_factory=list)


class Batcher:
    """Scores the texts of many requests, one call of the classifier at a time.

    While a call runs, requests gather. The next call takes a few texts of each client in turn, and of a client's
    requests in turn, so that a large request is scored in parts, with others' small ones in between.
    """

    def __init__(self, classifier: Classifier, most_waiting: int, observe: Callable[[int], None]):
        """
        Args:
            most_waiting: texts of one client that may wait or be scored at a time; its requests of up to `SMALL`
                texts have a room of their own, of the same size.
            observe: told how many texts each call scores.
        """
        self.classifier, self.most_waiting, self.observe = classifier, most_waiting, observe
        self.waiting: Counter[tuple[str, bool]] = Counter()  # (client, small) -> texts not yet answered
        self._turns: dict[str, deque[_Waiting]] = {}  # client -> requests with texts to score, next client first
        self._arrived = asyncio.Event()
        self._at_once = TURN  # texts of the next call: twice as many after a quick full one, half after a slow one
        self._thread = ThreadPoolExecutor(1, "scoring")  # one: the classifier is not made for two

    async def __call__(self, texts: list[Input], client: str) -> np.ndarray:
        """(texts, labels + 2): calibrated probabilities, 1 where a text's end was not read, and the stage.

        When cancelled, what is left of them is not scored.

        Raises:
            QueueFull: there is no room for them now.
        """
        if not texts:
            return np.empty((0, len(self.classifier.names) + 2))
        room = client, len(texts) <= SMALL
        if self.waiting[room] + len(texts) > self.most_waiting:
            raise QueueFull(self.waiting[room])
        self.waiting[room] += len(texts)
        request = _Waiting(texts, asyncio.get_running_loop().create_future())
        self._turns.setdefault(client, deque()).append(request)
        self._arrived.set()
        try:
            return await request.answer
        finally:
            self.waiting[room] -= len(texts)
            if not self.waiting[room]:
                del self.waiting[room]

    async def run(self) -> None:
        """Score what comes, until cancelled."""
        while True:
            await self._arrived.wait()
            parts, started = self._next_call(), time.perf_counter()
            if not parts:
                self._arrived.clear()
                continue
            await self._score(parts)
            took = time.perf_counter() - started
            if took > CALL_SECONDS:
                self._at_once = max(self._at_once // 2, TURN)
            elif took < CALL_SECONDS / 2 and sum(map(len, parts.values())) == self._at_once:
                self._at_once = min(self._at_once * 2, AT_ONCE)

    def close(self) -> None:
        """Wait for the call that runs."""
        self._thread.shutdown()

    def _next_call(self) -> dict[_Waiting, list[Input]]:
        """Requests with what the next call scores of each: turn after turn, until it is full or nobody waits."""
        parts, free = {}, self._at_once
        while free and self._turns:
            client = next(iter(self._turns))
            requests = self._turns.pop(client)
            turn = min(TURN, free)
            while turn and requests:
                request = requests.popleft()
                if request.answer.done():  # its client went away, or the model failed on it
                    continue
                part = request.texts[request.taken : request.taken + turn]
                parts.setdefault(request, []).extend(part)
                request.taken += len(part)
                turn, free = turn - len(part), free - len(part)
                if request.taken < len(request.texts):
                    requests.append(request)
            if requests:
                self._turns[client] = requests  # behind all others
        return parts

    async def _score(self, parts: dict[_Waiting, list[Input]]) -> None:
        different = {key_of(text): text for part in parts.values() for text in part}  # each once
        rows = {key: row for row, key in enumerate(different)}
        self.observe(sum(map(len, parts.values())))
        try:
            work = self._answers, list(different.values())
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, *work)
        except Exception as error:
            if len(parts) > 1:  # one of them may be at fault, the others are not
                for request, part in parts.items():
                    await self._score({request: part})
                return
            for request in parts:  # the server logs it, and goes on
                request.answer.done() or request.answer.set_exception(error)
        else:
            for request, part in parts.items():
                request.scores.append(scores[[rows[key_of(text)] for text in part]])
                if sum(map(len, request.scores)) == len(request.texts):
                    request.answer.done() or request.answer.set_result(np.concatenate(request.scores))

    def _answers(self, texts: list[Input]) -> np.ndarray:
        return np.column_stack(self.classifier.answers(texts))
