"""`FakeSGLang`: an HTTP server on loopback that answers as SGLang 0.5.23 does, for tests without a server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web

from agentrl.engines.contract import Engine
from agentrl.engines.sglang.fake import replies
from agentrl.engines.sglang.fake.adapters import Registry
from agentrl.engines.sglang.fake.control import Control, Died
from agentrl.engines.sglang.fake.faults import Fault, FaultKind, answer
from agentrl.engines.sglang.fake.replies import BadRequest, Limits, engine_error
from agentrl.engines.sglang.fake.scheduler import Run, Scheduler
from agentrl.engines.sglang.fake.served import Served, ServedEngine, ServedToy
from agentrl.engines.sglang.fake.toy import ToyModel

VERSION = "0.5.23"
LOOKS_FOR_CLIENT_S = 4.0
"""How often a request that is not streamed looks whether its client is still there."""


class FakeSGLang:
    """`async with FakeSGLang() as fake: SGLangEngine(fake.url, vocab_size=fake.vocab_size)`.

    Serves a `ToyModel`, or an entered `Engine` under `policy`; with `lora` also adapters of the toy (see `save_adapter`).
    `encode` is its tokenizer; by default that of the recorded server, for printable ASCII. `server_info` is laid over what it
    says of itself. What kills the real server kills this one: a token id outside the vocabulary, a blocked pickle, tensors of
    another shape, a cache flush that an update asks for while requests hold KV, memory released then or taken back twice.
    """

    def __init__(
        self,
        model: ToyModel | Engine | None = None,
        *,
        policy: str = "policy",
        context: int = 2048,
        eos: int = 258,
        deterministic: bool = False,
        token_s: float = 0.0,
        paused_health_s: float = 20.0,
        weight_version: str = "v0",
        version: str = VERSION,
        model_path: str = "models/toy",
        lora: bool = False,
        encode: Callable[[str], Sequence[int]] = replies.encode,
        server_info: Mapping[str, Any] | None = None,
    ) -> None:
        served: Served
        if model is None or isinstance(model, ToyModel):
            served = ServedToy(model or ToyModel.random(), deterministic=deterministic)
        else:
            served = ServedEngine(model, policy)
        self.limits = Limits(served.vocab_size, context, eos)
        self.scheduler = Scheduler(served, weight_version, replies.decode, token_s)
        self.url = ""
        self.dead = False
        self.requests: list[tuple[str, Any]] = []
        """(path, parsed body) of every request, in order of arrival."""
        self._paused_health_s = paused_health_s
        self._version = version
        self._model_path = model_path
        self._encode, self._more_info = encode, server_info or {}
        self._registry = Registry(served, lora)
        self._control = Control(self.scheduler, self._registry, model_path)
        self._faults: dict[str, Fault] = {}
        self._bodies: dict[int, Any] = {}
        self._streams_wrong: dict[int, FaultKind] = {}
        self._runner: web.AppRunner | None = None

    @property
    def vocab_size(self) -> int:
        """Of the served model."""
        return self.limits.vocab_size

    def fail(self, path: str, kind: FaultKind, times: int = 1) -> None:
        """The next `times` requests at `path` go wrong in this way."""
        self._faults[path] = Fault(kind, times)

    async def kill(self) -> None:
        """Closes every connection unanswered and listens no more, as a crashed server does."""
        self.dead = True
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()
            for connection in self._runner.server.connections if self._runner.server is not None else ():
                if connection.transport is not None:
                    connection.transport.abort()

    async def __aenter__(self) -> FakeSGLang:
        app = web.Application(middlewares=[self._middleware], client_max_size=1 << 34)
        get, post = app.router.add_get, app.router.add_post
        for path in ("/health", "/health_generate", "/ready"):
            get(path, self._health)
        for path in ("/model_info", "/get_model_info"):
            get(path, self._model_info)
        for path in ("/server_info", "/get_server_info"):
            get(path, self._server_info)
        get("/v1/models", self._models)
        get("/v1/loads", self._loads)
        app.router.add_route("*", "/flush_cache", self._flush_cache)
        post("/generate", self._generate)
        post("/abort_request", self._abort)
        post("/pause_generation", self._pause)
        post("/continue_generation", self._continue)
        for path in ("/tokenize", "/v1/tokenize"):
            post(path, self._tokenize)
        self._control.add_to(app)
        # Handlers outlive their clients: the real server looks for its clients by itself.
        # To aiohttp a shutdown_timeout of 0 means none.
        self._runner = web.AppRunner(app, handler_cancellation=False, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self.scheduler.abort(list(self.scheduler.runs), waiting=True)
            await self._runner.cleanup()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        raw = await request.text()
        try:
            body: Any = json.loads(raw) if raw else {}
        except ValueError:
            return web.json_response(replies.validation_error("body is no JSON").body, status=400)
        self.requests.append((request.path, body))
        self._bodies[id(request)] = body
        try:
            return await self._answer(request, handler)
        except BadRequest as error:
            return web.json_response(error.body, status=400)
        except Died:
            await self.kill()
            return web.Response(status=500)
        finally:
            del self._bodies[id(request)]

    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """By the handler, unless a fault is due."""
        fault = self._faults.get(request.path)
        if fault is None or fault.times == 0:
            return await handler(request)
        fault.times -= 1
        if fault.kind.startswith("stream_"):
            self._streams_wrong[id(request)] = fault.kind
            return await handler(request)
        return await answer(fault.kind, request, await handler(request) if fault.kind == "drip" else None)

    def _body(self, request: web.Request) -> Any:
        return self._bodies[id(request)]

    async def _health(self, request: web.Request) -> web.Response:
        if request.path != "/ready" and self.scheduler.paused:
            await asyncio.sleep(self._paused_health_s)
            return web.Response(status=503 if self.scheduler.paused else 200)
        return web.Response()

    async def _model_info(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({
            "model_path": self._control.model_path, "served_model_name": "toy", "tokenizer_path": self._model_path,
            "is_generation": True, "preferred_sampling_params": None, "weight_version": self.scheduler.version,
            "load_format": "auto", "model_type": "toy", "architectures": ["ToyForCausalLM"],
        })  # fmt: skip

    async def _server_info(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({
            "model_path": self._model_path, "served_model_name": "toy", "context_length": None, "tp_size": 1, "dp_size": 1,
            "weight_version": self.scheduler.version, "version": self._version,
            "max_total_num_tokens": 10 * self.limits.context, "max_req_input_len": self.limits.max_input,
            "internal_states": [{}], "enable_deterministic_inference": self.scheduler.served.deterministic,
            "device": "cpu", "pp_size": 1, "enable_lora": self._registry.enabled, "enable_memory_saver": False,
            "enable_weights_cpu_backup": False, "incremental_streaming_output": False,
            "sampling_mask_max_tokens": replies.WIDEST_MASK, **self._more_info,
        })  # fmt: skip

    async def _models(self, request: web.Request) -> web.Response:
        del request
        card = {"object": "model", "created": int(time.time()), "owned_by": "sglang"}
        base = card | {"id": "toy", "root": "toy", "parent": None, "max_model_len": self.limits.context}
        adapters = [
            card | {"id": name, "root": folder, "parent": "toy", "max_model_len": None}
            for name, folder in self._registry.loaded.items()
        ]
        return web.json_response({"object": "list", "data": [base, *adapters]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        ids = list(self._encode(self._body(request)["prompt"]))
        return web.json_response({"tokens": ids, "count": len(ids), "max_model_len": self.limits.context})

    async def _loads(self, request: web.Request) -> web.Response:
        del request
        running = len(self.scheduler.sampling)
        load = {"dp_rank": 0, "num_running_reqs": running, "num_waiting_reqs": len(self.scheduler.runs) - running}
        return web.json_response({"version": self._version, "loads": [load]})

    async def _flush_cache(self, request: web.Request) -> web.Response:
        seconds = float(request.query.get("timeout", 0))
        flushed = await self.scheduler.flush_within(seconds) if seconds else self.scheduler.flush()
        if flushed:
            return web.Response(text="Cache flushed.\nPlease check backend logs for more details. (When there are running or "
                                "waiting requests, the operation will not be performed.)\n")  # fmt: skip
        return web.Response(
            status=400, text="Timed out waiting for idle state." if "timeout" in request.query else "Flush cache failed.\n"
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body: Mapping[str, Any] = self._body(request)
        if not body.get("stream"):
            return await self._whole(request, body)
        try:
            async with AsyncExitStack() as stack:
                runs = await self._admit(body, stack)
                return await self._stream(request, body, runs[0])
        except BadRequest as error:
            told = error.body.get("error")
            if not isinstance(told, dict):  # refused before the stream began
                raise
            kind = {"type": "invalid_request_error", "code": 400, "retryable": False}
            event = json.dumps({"error": {**told, **kind}})
            return web.Response(
                text=f"data: {event}\n\ndata: [DONE]\n\n", headers={"Content-Type": "text/event-stream; charset=utf-8"}
            )

    async def _whole(self, request: web.Request, body: Mapping[str, Any]) -> web.Response:
        async with AsyncExitStack() as stack:
            runs = await self._admit(body, stack)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.scheduler.run(run)) for run in runs]
                group.create_task(self._look_for_client(request, runs, tasks))
        written = [self._reply(body, run) for run in runs]
        many = len(runs) > 1 or isinstance((body.get("input_ids") or [0])[0], list) or isinstance(body.get("text"), list)
        return web.json_response(written if many else written[0])

    async def _admit(self, body: Mapping[str, Any], stack: AsyncExitStack) -> list[Run]:
        """The requests that a body asks for, as the scheduler knows them; their adapter is held until the stack ends."""
        prompts, batch = replies.read_prompts(body)
        copies = int((body.get("sampling_params") or {}).get("n", 1))
        prompts = [prompt for prompt in prompts for _ in range(copies)]
        rids = body.get("rid") if batch or copies > 1 else [body.get("rid") or replies.new_rid()]
        rids = rids if isinstance(rids, list) else [replies.new_rid() for _ in prompts]
        runs = [replies.read_run(body, prompt, rid, self.limits) for prompt, rid in zip(prompts, rids, strict=True)]
        for run in runs:
            if run.rid in self.scheduler.runs:
                raise engine_error(f"Duplicate request ID detected: {run.rid}")
            if not all(0 <= token < self.vocab_size for token in run.prompt):
                raise Died("a token id outside the vocabulary")
        adapter = await stack.enter_async_context(self._registry.use(body.get("lora_path")))
        for run in runs:
            run.adapter = adapter
            self.scheduler.runs[run.rid] = run
        return runs

    def _reply(self, body: Mapping[str, Any], run: Run) -> dict[str, Any]:
        return replies.write_reply(body, run, self.scheduler.version, self.vocab_size - 1)

    async def _look_for_client(self, request: web.Request, runs: list[Run], tasks: list[asyncio.Task[None]]) -> None:
        while (await asyncio.wait(tasks, timeout=LOOKS_FOR_CLIENT_S))[1]:
            if request.transport is None or request.transport.is_closing():
                await self.scheduler.abort([run.rid for run in runs], waiting=True)

    async def _stream(self, request: web.Request, body: Mapping[str, Any], run: Run) -> web.StreamResponse:
        """Server-sent events; every one is the whole reply so far."""
        wrong = self._streams_wrong.pop(id(request), None)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def emit(run: Run) -> None:
            if run.finish is not None or run.aborted.is_set():
                return
            try:
                await response.write(f"data: {json.dumps(self._reply(body, run))}\n\n".encode())
            except ConnectionResetError:
                run.aborted.set()
            if wrong is not None and len(run.output) == 2:
                run.aborted.set()

        await self.scheduler.run(run, emit)
        if wrong == "stream_cut" and request.transport is not None:
            request.transport.abort()
            return response
        last = json.dumps(self._reply(body, run))
        if wrong == "stream_error":
            last = json.dumps({"error": {"message": "scheduler is gone", "type": "internal", "code": 503, "retryable": True}})
        await response.write(f"data: {last}\n\n".encode() if wrong != "stream_end" else b"")
        await response.write(b"data: [DONE]\n\n" if wrong is None else b"")
        return response

    async def _abort(self, request: web.Request) -> web.Response:
        body = self._body(request)
        await self.scheduler.abort(list(self.scheduler.runs) if body.get("abort_all") else [body["rid"]])
        return web.Response()

    async def _pause(self, request: web.Request) -> web.Response:
        await self.scheduler.pause(self._body(request).get("mode", "abort"))
        return web.json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def _continue(self, request: web.Request) -> web.Response:
        del request
        await self.scheduler.resume()
        return web.json_response({"message": "Generation continued successfully.", "status": "ok"})
