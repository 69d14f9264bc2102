"""`FakeSGLang`: an HTTP server on loopback that answers as SGLang 0.5.23 does, for tests without a server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from agentrl.engines.contract import Engine
from agentrl.engines.sglang.fake import replies
from agentrl.engines.sglang.fake.faults import Fault, FaultKind, answer
from agentrl.engines.sglang.fake.replies import BadRequest, Limits, engine_error
from agentrl.engines.sglang.fake.scheduler import Run, Scheduler
from agentrl.engines.sglang.fake.served import Served, ServedEngine, ServedToy
from agentrl.engines.sglang.fake.toy import ToyModel
from agentrl.errors import UserError

VERSION = "0.5.23"
LOOKS_FOR_CLIENT_S = 4.0
"""How often a request that is not streamed looks whether its client is still there."""

ALLOWED_GLOBALS = frozenset({
    ("torch._utils", "_rebuild_tensor_v2"), ("torch.storage", "_load_from_bytes"), ("collections", "OrderedDict"),
})  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"blocked: {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


class Died(Exception):
    """The scheduler of the real server raises here, and the whole server exits."""


class FakeSGLang:
    """`async with FakeSGLang() as fake: SGLangEngine(fake.url, vocab_size=fake.vocab_size)`.

    Serves a `ToyModel`, or an entered `Engine` under `policy`. What kills the real server kills this one: a token id
    outside the vocabulary, a blocked pickle, a cache flush that an update asks for while requests hold KV.
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
        self._session_open = False
        self._faults: dict[str, Fault] = {}
        self._bodies: dict[int, Any] = {}
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
        post("/update_weights_from_disk", self._update_from_disk)
        post("/begin_weight_update", self._begin_update)
        post("/update_weights_from_tensor", self._update_from_tensor)
        post("/end_weight_update", self._end_update)
        post("/update_weight_version", self._update_version)
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
            await self.scheduler.abort(list(self.scheduler.runs))
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
            "model_path": self._model_path, "served_model_name": "toy", "tokenizer_path": self._model_path,
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
        })  # fmt: skip

    async def _models(self, request: web.Request) -> web.Response:
        del request
        card = {
            "id": "toy",
            "object": "model",
            "created": int(time.time()),
            "owned_by": "sglang",
            "root": "toy",
            "parent": None,
        }
        return web.json_response({"object": "list", "data": [card | {"max_model_len": self.limits.context}]})

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
        prompts, batch = replies.read_prompts(body)
        copies = int((body.get("sampling_params") or {}).get("n", 1))
        prompts = [prompt for prompt in prompts for _ in range(copies)]
        many = batch or copies > 1
        rids = body.get("rid") if many else [body.get("rid") or replies.new_rid()]
        rids = rids if isinstance(rids, list) else [replies.new_rid() for _ in prompts]
        runs = [replies.read_run(body, prompt, rid, self.limits) for prompt, rid in zip(prompts, rids, strict=True)]
        for run in runs:
            if run.rid in self.scheduler.runs:
                raise engine_error(f"Duplicate request ID detected: {run.rid}")
            if not all(0 <= token < self.vocab_size for token in run.prompt):
                raise Died("a token id outside the vocabulary")
        for run in runs:
            self.scheduler.runs[run.rid] = run
        if body.get("stream"):
            return await self._stream(request, body, runs[0])
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.scheduler.run(run)) for run in runs]
            group.create_task(self._look_for_client(request, runs, tasks))
        written = [self._reply(body, run) for run in runs]
        return web.json_response(written if many else written[0])

    def _reply(self, body: Mapping[str, Any], run: Run) -> dict[str, Any]:
        return replies.write_reply(body, run, self.scheduler.version, self.vocab_size - 1)

    async def _look_for_client(self, request: web.Request, runs: list[Run], tasks: list[asyncio.Task[None]]) -> None:
        while (await asyncio.wait(tasks, timeout=LOOKS_FOR_CLIENT_S))[1]:
            if request.transport is None or request.transport.is_closing():
                await self.scheduler.abort([run.rid for run in runs])

    async def _stream(self, request: web.Request, body: Mapping[str, Any], run: Run) -> web.StreamResponse:
        """Server-sent events; every one is the whole reply so far."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def emit(run: Run) -> None:
            if run.finish is not None:
                return
            try:
                await response.write(f"data: {json.dumps(self._reply(body, run))}\n\n".encode())
            except ConnectionResetError:
                run.aborted.set()

        await self.scheduler.run(run, emit)
        last = json.dumps(self._reply(body, run))
        await response.write(f"data: {last}\n\ndata: [DONE]\n\n".encode())
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

    async def _update_from_disk(self, request: web.Request) -> web.Response:
        body = self._body(request)
        if not _is_folder(body["model_path"]):
            message = f"Failed to get weights iterator: Repo id must use alphanumeric chars: '{body['model_path']}'.."
            return web.json_response({"success": False, "message": message, "num_paused_requests": 0}, status=400)
        try:
            message = await self._write({"path": body["model_path"]}, body)
        except UserError as error:
            return web.json_response({"success": False, "message": str(error), "num_paused_requests": 0}, status=400)
        message = f"Succeeded to update model weights.{message}"
        return web.json_response({"success": True, "message": message, "num_paused_requests": 0})

    async def _write(self, weights: Mapping[str, Any], body: Mapping[str, Any]) -> str:
        """Gives what to add to the message of success."""
        if body.get("abort_all_requests"):
            await self.scheduler.abort(list(self.scheduler.runs))
        await self.scheduler.write(weights, body.get("weight_version"))
        if body.get("flush_cache", True) and not self.scheduler.flush():
            raise Died("cache flush failed after updating weights")
        return f" Weight version updated to {body['weight_version']}." if body.get("weight_version") else ""

    async def _begin_update(self, request: web.Request) -> web.Response:
        del request
        if self._session_open:
            return _outcome(False, "a weight-update session is already open; call end_weight_update() first")
        self._session_open = True
        return _outcome(True, "Success")

    async def _end_update(self, request: web.Request) -> web.Response:
        del request
        if not self._session_open:
            return _outcome(False, "no weight-update session is open; call begin_weight_update() first")
        self._session_open = False
        return _outcome(True, "Success")

    async def _update_from_tensor(self, request: web.Request) -> web.Response:
        body = self._body(request)
        if not self._session_open:
            return _outcome(False, "update_weights_from_tensor must run between begin_weight_update() and end_weight_update()")
        try:
            named: Any = _Unpickler(io.BytesIO(base64.b64decode(body["serialized_named_tensors"][0]))).load()
        except pickle.UnpicklingError as error:
            raise Died(str(error)) from error
        try:
            return _outcome(True, f"Success{await self._write(dict(named), body)}")
        except UserError as error:
            return _outcome(False, str(error))

    async def _update_version(self, request: web.Request) -> web.Response:
        body = self._body(request)
        if body.get("abort_all_requests", True):
            await self.scheduler.abort(list(self.scheduler.runs))
        self.scheduler.version = body["new_version"]
        message = f"Weight version updated to {body['new_version']}"
        return web.json_response({"success": True, "message": message, "new_version": body["new_version"]})


def _is_folder(path: str) -> bool:
    return Path(path).is_dir()


def _outcome(success: bool, message: str) -> web.Response:
    return web.json_response({"success": success, "message": message}, status=200 if success else 400)
