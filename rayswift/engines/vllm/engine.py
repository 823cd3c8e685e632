"""A vLLM engine as the asyncio object that the pool talks to, usually in an actor of its own.

One thread owns the `VllmCore` and steps it. Every call is a message that this thread takes between two steps, so
nothing needs a lock, and a load never runs within a step. Transfers, checksums and waits run outside that thread, while
it continues to step.
"""

import asyncio
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayswift.cluster.machine import interfaces, network_environment
from rayswift.engines import heap
from rayswift.engines.engine import Collected
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.engines.vllm.setup import EngineSetup, require_model
from rayswift.engines.weights import ObjectStore, Published, Transport, fetch
from rayswift.log import UserError

if TYPE_CHECKING:
    from rayswift.engines.vllm.core import VllmCore

T = TypeVar("T")
# Wait after the first finished completion, so that one answer holds the many that finish with it.
_LINGER_S = 0.02


class VllmEngine:
    """An `Engine` over vLLM."""

    def __init__(self, setup: EngineSetup):
        self._setup = setup
        self._transport: Transport = ObjectStore()
        self._calls: queue.SimpleQueue[tuple[Callable[[VllmCore], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_built = False
        self._error: UserError | None = None

    async def start(self) -> None:
        """See Engine.

        Raises:
            UserError: vLLM or the model is missing, or vLLM cannot build the engine; with its last log lines.
        """
        require_model(self._setup)
        os.environ.update(network_environment(_node_address(), interfaces(), os.environ))
        self._loop = asyncio.get_running_loop()
        self._has_finished, self._is_idle = asyncio.Event(), asyncio.Event()
        built: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(built,), name="vllm", daemon=True)
        self._thread.start()
        await built

    async def submit(self, requests: Sequence[SampleRequest]) -> None:
        """See Engine; all of them or none."""
        await self._call(lambda core: core.submit(requests))

    async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
        self._check()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_finished.wait(), timeout_s)
            await asyncio.wait_for(self._is_idle.wait(), _LINGER_S)
        self._check()
        self._has_finished.clear()
        return await self._call(lambda core: core.take(part_tokens))

    async def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
        return await self._call(lambda core: core.abort(keys))

    async def load(self, version: PolicyVersion, weights: Published | None) -> float:
        """See Engine; sampling continues while bytes arrive and are checked; None: the weights it was built from.

        Raises:
            StaleAttempt: the engine has newer weights.
            TimeoutError: the bytes did not arrive.
            UserError: the bytes arrived damaged.
            LoadFailed: they are weights of another model.
        """
        if weights is None:
            await self._call(lambda core: core.serve_own_weights(version))
            return 0.0
        assert version == weights.version
        self._check()
        tensors = await fetch(weights, self._transport, self._setup.load_timeout_s)
        return await self._call(lambda core: core.load(weights, tensors))

    async def score(self, token_ids: NDArray[np.int32], timeout_s: float) -> NDArray[np.float32]:
        """See Engine; at the sampling's temperature."""
        deadline = self._loop.time() + timeout_s
        scored: asyncio.Future[NDArray[np.float32]] = self._loop.create_future()
        number = await self._call(lambda core: core.score(token_ids, lambda found: self._resolve(scored, found)))
        while (left_s := deadline - self._loop.time()) > 0:  # the thread may stop before it has scored
            await asyncio.wait([scored], timeout=min(1.0, left_s))
            if scored.done():
                return scored.result()
            self._check()
        await self._call(lambda core: core.give_up_score(number))
        raise TimeoutError(f"a text of {len(token_ids)} tokens was not scored within {timeout_s:g} s")

    async def close(self) -> None:
        """Stop, and free vLLM's memory."""
        if self._is_built and not self._error:
            await self._call(lambda core: core.close())
            self._error = UserError("the engine was closed", exit_code=1)

    async def _call(self, method: "Callable[[VllmCore], T]") -> T:
        """Call a function in the engine's thread, between two steps."""
        self._check()
        answer: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((method, answer))
        if self._error:  # the thread stopped meanwhile, and may not have seen the message
            self._fail_calls(self._error)
        return await answer

    def _check(self) -> None:
        if self._error:
            raise self._error
        if not self._is_built:
            raise UserError("the engine has not started", exit_code=1)

    def _run(self, built: asyncio.Future[None]) -> None:
        """The engine's thread."""
        from rayswift.engines.vllm.core import VllmCore

        try:
            core = VllmCore(self._setup)
        except BaseException as error:  # raised in the caller of `start`
            self._resolve(built, error)
            return
        heap.freeze()
        self._is_built = True
        self._resolve(built, None)
        try:
            while not self._error:
                self._take_calls(core)
                if core.busy:
                    core.step()
                if core.finished and not self._has_finished.is_set():
                    self._loop.call_soon_threadsafe(self._has_finished.set)
                if core.busy == self._is_idle.is_set():
                    self._loop.call_soon_threadsafe(self._is_idle.clear if core.busy else self._is_idle.set)
        except BaseException as error:  # raised in every waiting call
            self._error = core.explained("the vLLM engine stopped", error)
            self._loop.call_soon_threadsafe(self._has_finished.set)
            self._fail_calls(self._error)

    def _take_calls(self, core: "VllmCore") -> None:
        """Answer the calls that have arrived; wait for one if there is nothing to step."""
        while True:
            try:
                method, answer = self._calls.get(block=not core.busy, timeout=1)
            except queue.Empty:
                return
            try:
                result = method(core)
            except Exception as error:  # the caller's
                self._resolve(answer, error)
            else:
                self._resolve(answer, result)
            if self._calls.empty():
                return

    def _fail_calls(self, error: UserError) -> None:
        while True:
            try:
                _, answer = self._calls.get_nowait()
            except queue.Empty:
                return
            self._resolve(answer, error)

    def _resolve(self, future: "asyncio.Future[Any]", result: Any) -> None:
        self._loop.call_soon_threadsafe(_set, future, result)


def _set(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():  # its caller has given up
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


def _node_address() -> str:
    """Return the address by which Ray reaches this node; 127.0.0.1 outside Ray."""
    if "ray" not in sys.modules:
        return "127.0.0.1"
    import ray

    return str(ray.util.get_node_ip_address()) if ray.is_initialized() else "127.0.0.1"
