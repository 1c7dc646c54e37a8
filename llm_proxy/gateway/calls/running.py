"""One call of a client: read, allowed, planned, and tried at one target after the other until one of them answers.

Until a model's first word a failure moves on to the next target; behind it an error ends the stream, in the caller's
dialect and with a broken connection. Every attempt is noted. Leaves out the order of targets (`planning`), what is
worth another try (`retrying`) and how a target is spoken to (`ways`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import sys
import time
import traceback
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from aiohttp import web

from llm_proxy.dialects.digest import Usage
from llm_proxy.dialects.reading import read_value
from llm_proxy.gateway import retrying, withdrawn
from llm_proxy.gateway.calls import speaking
from llm_proxy.gateway.calls.arriving import Arrived, body_of
from llm_proxy.gateway.calls.ids import request_id
from llm_proxy.gateway.calls.project import of_headers
from llm_proxy.gateway.calls.ways import DIALECTS, STREAMED, Feed, Passing, Unfit, Way, way
from llm_proxy.gateway.facts import Attempt, Caller, ProviderKey, Target
from llm_proxy.gateway.limiting.estimate import Estimate
from llm_proxy.gateway.limiting.limiter import FREE, Demand
from llm_proxy.gateway.planning import plan
from llm_proxy.gateway.privacy import recorded
from llm_proxy.gateway.refusals import STORE_AWAY, Refusal
from llm_proxy.gateway.sending.attribution import Attribution
from llm_proxy.gateway.sending.client import Answer, Broken, Unreachable
from llm_proxy.gateway.sending.sender import named
from llm_proxy.gateway.store.database import StoreAway
from llm_proxy.gateway.tokens import Prompt
from llm_proxy.gateway.translate.conversation import Failure
from llm_proxy.gateway.translate.errors import Kind, Problem, problem_of, read_problem, status_of
from llm_proxy.gateway.translate.losses import BadRequest

if TYPE_CHECKING:
    from llm_proxy.gateway.site import Site

log = logging.getLogger("llm_proxy.gateway")

LARGEST: Final = 64 << 20  # bytes of a whole answer
WHOLE_TIMEOUT: Final = 600.0  # seconds that an answer which does not stream has until it begins
_LARGEST_ERROR: Final = 1 << 20
_ERROR_TIMEOUT: Final = 5.0  # seconds that the words of an error have; its status is enough to go on
_MOST_HELD: Final = 1 << 20  # bytes of a stream that wait for the model's first word
_MOST_GUESSED: Final = 1 << 16  # bytes of a request; beyond are pictures, more often than words
_BYTES_OF_TOKEN: Final = 4
_LONGEST_LIST: Final = 2048  # characters of the header that says what was left out
_SHOWN: Final = "[]():/@+"  # in a header, beside letters and digits
_EVENTS: Final = "text/event-stream; charset=utf-8"
_STREAM: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_DROP: Final = {"true": True, "false": False}
_CODE: Final = re.compile(r"[a-z0-9_.-]{1,64}", re.ASCII)
_RANDOM: Final = random.Random()
_NO_USAGE: Final = Usage()

# What callers' programs are told of a target that gave no answer. `Unreachable` has more codes, for the log.
_UNREACHABLE: Final = "provider_unreachable"
_TIMED_OUT: Final = "provider_timeout"
_BROKE_OFF: Final = "provider_broke_off"
_KEY_REFUSED: Final = "provider_key_refused"
_CODES: Final = {
    "key_unreadable": "provider_key_unreadable",
    "bad_key": "provider_key_unusable",
    "bad_base_url": "provider_not_allowed",
    "upstream_not_allowed": "provider_not_allowed",
    "upstream_truncated": _BROKE_OFF,
}


class _Failed(Exception):
    """An attempt that gave the caller nothing. `own` is the provider's body and its type, where the caller reads it."""

    def __init__(
        self,
        problem: Problem,
        status: int | None = None,
        *,
        timed_out: bool = False,
        stay_away: float | None = None,
        own: tuple[bytes, str] | None = None,
        noted: str = "",
    ) -> None:
        super().__init__(noted or problem.message)
        self.problem = problem
        self.status = status
        self.timed_out = timed_out
        self.stay_away = stay_away
        self.own = own

    @property
    def code(self) -> str:
        """What can be said of it without anybody's words."""
        told = self.problem.code or ""
        return told if _CODE.fullmatch(told) else self.problem.kind


@dataclass(slots=True)
class _Try:
    """One attempt while it goes on."""

    number: int
    target: Target | None
    at: datetime
    clock: float
    status: int | None = None
    first_token: float | None = None
    usage: Usage = _NO_USAGE

    def spoken(self) -> None:
        self.first_token = time.perf_counter() - self.clock


class Call:
    """One request. `api` is what its caller speaks: a name of `DIALECTS`."""

    def __init__(self, site: Site, caller: Caller, request: web.Request, api: str) -> None:
        self.id = request_id()
        self._site = site
        self._caller = caller
        self._request = request
        self._api = api
        self._dialect = DIALECTS[api]
        self._clock = time.perf_counter()
        self._asked = ""
        self._stream = False
        self._headers = speaking.identified(self._dialect, self.id)
        self._number = 0
        self._held = FREE
        self._project = of_headers(request.headers)

    async def answer(self) -> web.StreamResponse:
        """What the caller gets, whatever happens. Raises CancelledError where he has left."""
        try:
            body = await body_of(self._request)
            withdrawn.check(self._site.options, self._request)
            arrived = Arrived(body)
            self._asked = arrived.model
            self._project = self._project or arrived.project
            self._stream = arrived.stream and self._api in STREAMED
            return await self._tried(arrived, await self._targets(arrived))
        except Refusal as refused:
            return self._refused(refused)
        except StoreAway:
            return self._refused(STORE_AWAY)
        except BadRequest as wrong:
            self._note_unsent(400, "refused", self._noted(str(wrong), Kind.INVALID))
            return speaking.problem(self._dialect, problem_of(wrong), self.id, self._headers)
        except Exception:
            self._tell_fault("request %s failed")
            fault = Refusal(500, "internal_error", f"the gateway failed; its log says why ({self.id})")
            if self._number:  # the attempt at hand has been noted
                return speaking.refusal(self._dialect, fault, self.id, self._headers)
            return self._refused(fault)
        finally:
            self._held.close()

    async def _targets(self, arrived: Arrived) -> tuple[Target, ...]:
        """Where it may go, once it is counted: also what leads nowhere is. Raises Refusal, StoreAway."""
        catalog = await self._site.catalogs.of(self._caller.user_id)
        prompt = Prompt(self._api, arrived.body)
        missed: Refusal | None = None
        targets: tuple[Target, ...] = ()
        try:
            targets = plan(catalog, arrived.model, prompt, _RANDOM, raw=self._site.options.raw_models)
        except Refusal as refused:
            missed = refused
        alias, estimate = catalog.aliases.get(arrived.model), None
        if targets and self._api != "count_tokens":  # which is free everywhere
            estimate = Estimate(self._api, arrived.body, prompt, targets[0])
        demand = Demand(self._dialect, alias, self._stream and bool(targets), estimate)
        self._held = await self._site.limiter.take(self._caller, demand, self.id)
        self._headers.update(self._held.headers)
        if missed is not None:
            raise missed
        return targets

    def _refuses(self) -> bool:
        """Whether what cannot be carried is refused. Raises Refusal 400."""
        told = self._request.headers.get("x-llm-proxy-drop")
        if told is None:
            return not self._site.options.drop
        if told not in _DROP:
            raise Refusal(400, "invalid_request", "x-llm-proxy-drop: must be true or false", param="x-llm-proxy-drop")
        return not _DROP[told]

    # -- attempts

    async def _tried(self, arrived: Arrived, targets: tuple[Target, ...]) -> web.StreamResponse:
        refuse = self._refuses()
        breakers = self._site.breakers
        failures: list[retrying.Failure] = []
        last: _Failed | None = None
        while (step := retrying.following(len(targets), failures, _RANDOM)) is not None:
            if step.wait:
                await asyncio.sleep(step.wait)
            target = targets[step.index]
            speaks = self._site.sender.speaks(target.key, target.model)
            if self._api == "count_tokens" and self._api not in speaks:
                return self._estimated(arrived, target)
            try:
                chosen = way(arrived, self._api, target, speaks, refuse=refuse, id=self.id)
            except (Refusal, BadRequest):
                if not failures:
                    raise
                failures.append(retrying.Failure(step.index, skipped=True))  # it would do, but cannot be asked this
                continue
            if not breakers.allows(target.key.id, target.model):
                failures.append(retrying.Failure(step.index, skipped=True))
                continue
            try:
                return await self._attempt(target, chosen)
            except _Failed as failed:
                last = failed
                failures.append(retrying.Failure(step.index, failed.status, failed.stay_away, failed.timed_out))
        if last is None:
            waits = (breakers.wait(target.key.id, target.model) for target in targets)
            wait = min(filter(None, waits), default=0.0)
            words = f"every provider of {self._asked!r} has failed of late and is left alone for a while"
            raise Refusal(503, "providers_resting", words, headers={"Retry-After": str(max(1, math.ceil(wait)))})
        return self._failed(last)

    async def _attempt(self, target: Target, chosen: Way) -> web.StreamResponse:
        """Raises _Failed, where another target may be tried: the caller has got nothing yet."""
        self._number += 1
        one = _Try(self._number, target, datetime.now(UTC), time.perf_counter())
        breakers, key_id, model = self._site.breakers, target.key.id, target.model
        try:
            answer = await self._send(one, target, chosen)
            try:
                taken = self._streamed if self._stream else self._whole
                response, failure = await taken(one, target, chosen, answer)
            finally:
                answer.close()
        except _Failed as failed:
            if retrying.moves_on(failed.status):
                breakers.failed(key_id, model if failed.timed_out or retrying.of_model(failed.status) else "")
            else:
                breakers.succeeded(key_id, model)
            ending = "timed_out" if failed.timed_out else "upstream_failed"
            self._note(one, ending, self._noted(str(failed), failed.code))
            raise
        except asyncio.CancelledError:
            breakers.let_go(key_id, model)
            self._note(one, "client_gone")
            raise
        except Refusal:
            breakers.let_go(key_id, model)
            self._number -= 1  # it was not sent, so it is noted as what was refused (`answer`)
            raise
        except BaseException:
            breakers.let_go(key_id, model)
            self._note(one, "refused", "internal_error")
            raise
        if failure == _GONE:
            breakers.let_go(key_id, model)
            self._note(one, "client_gone")
        elif failure:
            breakers.failed(key_id, model)
            self._note(one, "upstream_failed", failure)
        else:
            breakers.succeeded(key_id, model)
            self._note(one, "complete")
        return response

    async def _send(self, one: _Try, target: Target, chosen: Way) -> Answer:
        """An answer of success. Raises _Failed."""
        limit = self._site.options.first_token_timeout
        try:
            answer = await self._site.sender.send(
                target,
                chosen.api,
                chosen.body,
                stream=self._stream,
                headers=self._request.headers,
                attribution=self._attribution(one.number, target),
                timeout=limit if self._stream else max(limit, WHOLE_TIMEOUT),
            )
        except Unreachable as error:
            raise _unanswered(target.key, error) from None
        one.status = answer.status
        if 200 <= answer.status < 300:
            return answer
        try:
            raise await _problem(target.key, self._site.sealer.open(target.key), chosen, answer)
        finally:
            answer.close()

    async def _whole(self, one: _Try, target: Target, chosen: Way, answer: Answer) -> tuple[web.StreamResponse, str]:
        try:
            data = await answer.read(LARGEST)
            body, one.usage = chosen.whole(data)
        except Broken as broken:
            raise _broke_off(broken.message) from None
        except Unfit as unfit:
            raise _of(unfit.failure) from None
        one.spoken()
        headers = self._told(target, one.number, chosen)
        if isinstance(chosen, Passing):
            headers["Content-Type"] = answer.headers.get("content-type", "application/json")
        return speaking.whole(body, answer.status, headers), ""

    async def _streamed(self, one: _Try, target: Target, chosen: Way, answer: Answer) -> tuple[web.StreamResponse, str]:
        feed = chosen.feed()
        try:
            first, more = await self._first(one, feed, answer)
            headers = self._told(target, one.number, chosen) | _STREAM
            passed = isinstance(chosen, Passing)
            headers["Content-Type"] = answer.headers.get("content-type", _EVENTS) if passed else _EVENTS
            response = web.StreamResponse(headers=headers)
            try:
                await response.prepare(self._request)
                await response.write(first)
                if more:
                    await _rest(response, feed, answer)
            except ConnectionError:
                return response, _GONE
            except Exception:  # a head is out: no other answer can be given
                self._tell_fault("request %s failed in the middle of its stream")
                self._break_off()
                return response, "internal_error"
            if feed.failure is None:
                return response, ""  # its end is written once it is noted (by aiohttp): who has it finds it in usage
            self._break_off()
            return response, self._noted(feed.failure.message, feed.failure.kind)
        finally:
            one.usage = feed.usage if feed.over or not feed.begun else _so_far(feed, chosen)

    async def _first(self, one: _Try, feed: Feed, answer: Answer) -> tuple[bytes, bool]:
        """The stream up to the model's first word, and whether more is to come. Raises _Failed."""
        held: list[bytes] = []
        size = 0
        more = False
        left = self._site.options.first_token_timeout - (time.perf_counter() - one.clock)
        try:
            async with asyncio.timeout(max(left, 0.0)):
                async for piece in answer.pieces():
                    held.append(feed.feed(piece))
                    size += len(piece)
                    if feed.begun or feed.failure or size > _MOST_HELD:
                        more = True
                        break
                else:
                    held.append(feed.finish())
        except TimeoutError:
            late = Problem(Kind.GATEWAY_LATE, "no word of the model came in time", code=_TIMED_OUT)
            raise _Failed(late, timed_out=True) from None
        except Broken as broken:
            raise _broke_off(broken.message) from None
        if not feed.begun and feed.failure is not None:
            raise _of(feed.failure)
        if not feed.begun and not more:
            raise _broke_off("the provider's stream ended before its model said anything")
        one.spoken()
        return b"".join(held), more and feed.failure is None

    def _break_off(self) -> None:
        """What is written still goes out; that nothing ends the body tells that it is not whole."""
        if self._request.transport is not None:
            self._request.transport.close()

    # -- answers without a provider's

    def _failed(self, last: _Failed) -> web.Response:
        headers = self._headers | {"x-llm-proxy-attempts": str(self._number)}
        if last.own is None or last.status is None:
            return speaking.problem(self._dialect, last.problem, self.id, headers)
        if last.problem.retry_after:
            headers["Retry-After"] = last.problem.retry_after
        body, kind = last.own
        return speaking.whole(body, last.status, headers | {"Content-Type": kind or "application/json"})

    def _estimated(self, arrived: Arrived, target: Target) -> web.Response:
        """How many tokens a request has, where its provider does not count them."""
        body = b'{"input_tokens":%d}' % Prompt(self._api, arrived.document).tokens(target.model)
        self._note_unsent(200, "complete", target=target)
        model = shown(f"{target.key.provider}/{target.model}")
        return speaking.whole(body, 200, self._headers | {"x-llm-proxy-model": model, "x-llm-proxy-estimated": "true"})

    def _refused(self, refused: Refusal) -> web.Response:
        self._site.refused[refused.code] += 1
        self._note_unsent(refused.status, "refused", refused.code)
        return speaking.refusal(self._dialect, refused, self.id, self._headers)

    # -- what is told of it

    def _told(self, target: Target, number: int, chosen: Way) -> dict[str, str]:
        told = {
            **self._headers,
            "x-llm-proxy-attempts": str(number),
            "x-llm-proxy-model": shown(f"{target.key.provider}/{target.model}"),
        }
        if chosen.dropped:
            told["x-llm-proxy-dropped"] = ", ".join(map(shown, chosen.dropped))[:_LONGEST_LIST]
        return told

    def _attribution(self, number: int, target: Target) -> Attribution:
        caller = self._caller
        team = str(caller.team_ids[0]) if caller.team_ids else ""
        return Attribution(
            request_id=self.id,
            attempt=number,
            user=caller.email,
            key=caller.key_name,
            alias=target.alias,
            team=team,
            account=self._site.store.account(caller.user_id),
            project=self._project,
            privacy=recorded(caller.privacy, self._site.options),
        )

    @property
    def _in_full(self) -> bool:
        return not recorded(self._caller.privacy, self._site.options)

    def _noted(self, words: str, code: str) -> str:
        """Words may repeat what was asked, so that only a code is noted where that is not kept as it is."""
        return words if self._in_full else code

    def _tell_fault(self, words: str) -> None:
        """In our log, the fault at hand; what an exception says may be what was asked."""
        if self._in_full:
            log.exception(words, self.id)
            return
        kind, _, trace = sys.exc_info()
        log.error(f"{words}: %s\n%s", self.id, kind.__name__ if kind else "", "".join(traceback.format_tb(trace)))

    def _note(self, one: _Try, ending: str, error: str = "") -> None:
        attempt = Attempt(
            request_id=self.id,
            number=one.number,
            at=one.at,
            caller=self._caller,
            api=self._api,
            asked=self._asked,
            target=one.target,
            status=one.status,
            ending=ending,
            error=error,
            stream=self._stream,
            usage=one.usage,
            seconds=time.perf_counter() - one.clock,
            first_token=one.first_token,
            project=self._project,
        )
        self._site.usage.note(attempt)
        self._held.note(attempt)

    def _note_unsent(self, status: int, ending: str, error: str = "", target: Target | None = None) -> None:
        one = _Try(0, target, datetime.now(UTC), self._clock, status)
        self._note(one, ending, error)


_GONE: Final = "\0gone"  # of a stream: who asked for it has left


async def _rest(response: web.StreamResponse, feed: Feed, answer: Answer) -> None:
    """Behind the first word. Raises ConnectionError where the caller has left."""
    try:
        async for piece in answer.pieces():
            if out := feed.feed(piece):
                await response.write(out)
            if feed.failure is not None:
                return
        last = feed.finish()
    except Broken as broken:
        last = b"" if feed.over else feed.break_off(Failure(Kind.BAD_GATEWAY, broken.message))
    if last:
        await response.write(last)


def _unanswered(key: ProviderKey, error: Unreachable) -> _Failed:
    kind, code = (Kind.GATEWAY_LATE, _TIMED_OUT) if error.timed_out else (Kind.BAD_GATEWAY, _CODES.get(error.code))
    words = error.message if code else f"{key.provider} cannot be reached: {error.message}"
    return _Failed(Problem(kind, words, code=code or _UNREACHABLE), timed_out=error.timed_out)


def _broke_off(words: str) -> _Failed:
    return _Failed(Problem(Kind.BAD_GATEWAY, words, code=_BROKE_OFF))


async def _problem(key: ProviderKey, secret: str, chosen: Way, answer: Answer) -> _Failed:
    """What a provider's error is to our caller: a key that was refused is not his."""
    try:
        async with asyncio.timeout(_ERROR_TIMEOUT):
            data = (await answer.read(_LARGEST_ERROR)).replace(secret.encode(), b"(the key)")  # nobody's to read
    except (Broken, TimeoutError):
        data = b""
    told = read_value(data)
    words = data.decode("utf-8", "replace") if told is None else told
    problem = read_problem(answer.status, answer.headers, words)
    if answer.status in (401, 403):
        words = f"{key.provider} refused the gateway's provider key {named(key)} with status {answer.status}"
        remedy = "your own key is good; whoever manages the provider key has to see to it"
        mended = Problem(Kind.BAD_GATEWAY, f"{words}; {remedy}", code=_KEY_REFUSED)
        return _Failed(mended, answer.status, noted=f"{words}: {problem.message}")
    own = (data, answer.headers.get("content-type", "")) if isinstance(chosen, Passing) and told else None
    if answer.status < 400:
        problem, own = replace(problem, kind=Kind.BAD_GATEWAY), None
    return _Failed(problem, answer.status, stay_away=retrying.stay_away(answer.headers), own=own)


def _so_far(feed: Feed, chosen: Way) -> Usage:
    """What an answer that was broken off has used, at least: most providers tell only at the end, and charge anyway."""
    told = feed.usage
    went_in = told.input if told.prompt else min(len(chosen.body), _MOST_GUESSED) // _BYTES_OF_TOKEN
    return replace(told, input=went_in, output=max(told.output, feed.pieces))


def _of(failure: Failure) -> _Failed:
    """A failure that came under a status of success."""
    return _Failed(Problem(failure.kind, failure.message), status_of(failure.kind))


@lru_cache(maxsize=1024)
def shown(text: str) -> str:
    """A caller's or provider's word as a header can hold it."""
    return quote(text, safe=_SHOWN, errors="replace")
