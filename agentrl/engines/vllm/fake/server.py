"""`FakeVLLM`: an HTTP server on loopback that answers as vLLM 0.32.0 does, for tests without a server.

The model and the scheduling are those of the fake SGLang; here are vLLM's routes, its shapes, and what kills it: a reload of
weights that failed takes it down at the next request.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aiohttp import web

from agentrl.engines.sglang.fake.faults import FaultKind, answer
from agentrl.engines.sglang.fake.replies import decode
from agentrl.engines.sglang.fake.scheduler import Run, Scheduler
from agentrl.engines.sglang.fake.served import ServedToy
from agentrl.engines.sglang.fake.toy import ToyModel
from agentrl.engines.vllm.fake.replies import MODEL, BadRequest, read_run, usage, write_choice, write_reply
from agentrl.engines.vllm.wire import GENERATE
from agentrl.errors import UserError

VERSION = "0.32.0"
AnyFault: TypeAlias = "FaultKind | Literal['cut']"
"""And "cut": half of the answer, then the connection closes."""


class FakeVLLM:
    """`async with FakeVLLM() as fake: VLLMEngine(fake.url)`.

    Serves a `ToyModel`, whose folder (config.json and model.safetensors) is `folder`. Adapters add to its `head`.
    """

    def __init__(
        self,
        model: ToyModel | None = None,
        *,
        context: int = 1024,
        eos: int = 258,
        token_s: float = 0.0,
        version: str = VERSION,
        logprobs_mode: str = "processed_logprobs",
        scale_out: bool = True,
        dev_mode: bool = True,
        max_rank: int = 0,
        device: str = "cuda",
        chunked: bool = True,
    ) -> None:
        self.model = model or ToyModel.random()
        self._context, self._eos, self._token_s, self._version = context, eos, token_s, version
        self._logprobs_mode, self._scale_out, self._dev_mode, self._max_rank = logprobs_mode, scale_out, dev_mode, max_rank
        self._device, self._chunked = device, chunked
        self.schedulers = {MODEL: self._scheduler(self.model, "default")}
        """By the name of the model or adapter that is asked for."""
        self.url = ""
        self.requests: list[tuple[str, Any]] = []
        """(path, parsed body) of every request, in order of arrival."""
        self.doomed = self.dead = False
        self._faults: dict[str, tuple[AnyFault, int]] = {}
        self._bodies: dict[int, Any] = {}
        self._cutting: set[int] = set()
        self._runner: web.AppRunner | None = None
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)

    def _scheduler(self, model: ToyModel, version: str) -> Scheduler:
        # The real server heeds seeds; the random numbers of a request begin anew behind what it was sent.
        return Scheduler(ServedToy(model, deterministic=True), version, decode, self._token_s)

    async def __aenter__(self) -> FakeVLLM:
        write_model(self.model, self.folder)
        app = web.Application(middlewares=[self._middleware], client_max_size=1 << 34)
        post, get = app.router.add_post, app.router.add_get
        post(GENERATE, self._generate)
        get("/version", self._show_version)
        get("/v1/models", self._models)
        if self._dev_mode:
            get("/server_info", self._server_info)
            get("/weight_info", self._weight_info)
            get("/is_paused", self._is_paused)
            for path, handler in {
                "/pause": self._pause, "/resume": self._resume, "/abort_requests": self._abort,
                "/reset_prefix_cache": self._reset, "/collective_rpc": self._rpc, "/update_weight_version": self._name_weights,
            }.items():  # fmt: skip
                post(path, handler)
        if self._max_rank:
            post("/v1/load_lora_adapter", self._load_adapter)
            post("/v1/unload_lora_adapter", self._unload_adapter)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._temporary.cleanup()

    def fail(self, path: str, kind: AnyFault, times: int = 1) -> None:
        """The next `times` requests at `path` go wrong in this way."""
        self._faults[path] = (kind, times)

    async def kill(self) -> None:
        """Closes every connection unanswered and listens no more, as a crashed server does."""
        self.dead = True
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()
            for connection in self._runner.server.connections if self._runner.server is not None else ():
                if connection.transport is not None:
                    connection.transport.abort()

    # --- the HTTP layer ----------------------------------------------------------------------------------------------------
    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        self.requests.append((request.path, body))
        self._bodies[id(request)] = body
        try:
            return await self._faulty(request, handler)
        finally:
            del self._bodies[id(request)]
            self._cutting.discard(id(request))

    def _body(self, request: web.Request) -> Any:
        return self._bodies[id(request)]

    async def _faulty(self, request: web.Request, handler: Any) -> web.StreamResponse:
        kind, times = self._faults.get(request.path, ("drop", 0))
        if not times:
            return await self._answered(request, handler)
        self._faults[request.path] = (kind, times - 1)
        if kind != "cut":
            genuine = await self._answered(request, handler) if kind == "drip" else None
            return await answer(kind, request, genuine)
        if (self._body(request) or {}).get("stream"):
            self._cutting.add(id(request))
            return await self._answered(request, handler)
        return await self._cut(request, handler)

    async def _answered(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.doomed and request.path == GENERATE:
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            return web.json_response(BadRequest(500, "InternalServerError", message).body, status=500)
        try:
            return await handler(request)
        except BadRequest as error:
            return web.json_response(error.body, status=error.status)

    async def _cut(self, request: web.Request, handler: Any) -> web.StreamResponse:
        genuine = await self._answered(request, handler)
        body = genuine.body if isinstance(genuine, web.Response) and isinstance(genuine.body, bytes) else b"{}"
        half = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await half.prepare(request)
        await half.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return half

    async def _show_version(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"version": self._version})

    async def _models(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"object": "list", "data": [
            {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": str(self.folder),
             "parent": None, "max_model_len": self._context, "permission": [{}]}
            for name in self.schedulers
        ]})  # fmt: skip

    async def _server_info(self, request: web.Request) -> web.Response:
        del request
        model = {
            "model": str(self.folder), "served_model_name": MODEL, "max_model_len": self._context, "dtype": "torch.float32",
            "logprobs_mode": self._logprobs_mode,
        }  # fmt: skip
        lora = {"max_lora_rank": self._max_rank, "max_loras": 1} if self._max_rank else None
        config = {
            "model_config": model, "lora_config": lora, "device_config": {"device": self._device},
            "scheduler_config": {"enable_chunked_prefill": self._chunked},
        }  # fmt: skip
        return web.json_response({"vllm_config": config, "vllm_env": {}, "system_env": {}})

    # --- generation --------------------------------------------------------------------------------------------------------
    async def _generate(self, request: web.Request) -> web.StreamResponse:
        if not self._scale_out:
            message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
            raise BadRequest(403, "PermissionDeniedError", message)
        body: Mapping[str, Any] = self._body(request)
        name = body.get("model") or MODEL
        if name not in self.schedulers:
            aliases = ", ".join(self.schedulers)
            message = f"The model `{name}` does not exist. Valid aliases: {aliases}."
            raise BadRequest(404, "NotFoundError", message, "model")
        scheduler = self.schedulers[name]
        if self._max_rank and body["sampling_params"].get("prompt_logprobs") is not None:
            self.doomed = True  # the real one dies if it meets another request in the batch
        run = read_run(body, self.model.vocab_size, self._context, self._eos)
        scheduler.runs[run.rid] = run
        async with asyncio.TaskGroup() as group:
            if body.get("stream"):
                return await self._stream(request, body, scheduler, run)
            task = group.create_task(scheduler.run(run))
            while not task.done():
                await asyncio.wait([task], timeout=0.05)
                if request.transport is None or request.transport.is_closing():
                    await scheduler.abort([run.rid])
        return web.json_response(write_reply(body, run, scheduler.version))

    async def _stream(
        self, request: web.Request, body: Mapping[str, Any], scheduler: Scheduler, run: Run
    ) -> web.StreamResponse:
        """Server-sent events, each with what is new; the prompt's ids in the first, the spans in the last."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        sent = 0

        async def event(**more: Any) -> None:
            told = {"request_id": run.rid, "usage": None, "output_mode": "tokens", **more}
            await response.write(f"data: {json.dumps(told)}\n\n".encode())

        async def emit(run: Run, *, last: bool = False) -> None:
            nonlocal sent
            if run.finish is not None and not last:
                return
            ids = {"prompt_token_ids": run.prompt} if not sent and body.get("return_token_ids") else {}
            choice = write_choice(body, run, run.steps[sent:], scheduler.version, last=last)
            sent = len(run.steps)
            if id(request) in self._cutting and request.transport is not None:
                request.transport.abort()
            try:
                await event(**ids, choices=[choice])
            except ConnectionResetError:
                run.aborted.set()

        await scheduler.run(run, emit)
        await emit(run, last=True)
        if (body.get("stream_options") or {}).get("include_usage"):
            await event(choices=[], usage={name: count for name, count in usage(run).items() if count is not None})
        await response.write(b"data: [DONE]\n\n")
        return response

    # --- control -----------------------------------------------------------------------------------------------------------
    async def _abort(self, request: web.Request) -> web.Response:
        named = (self._body(request) or {}).get("request_ids")
        for scheduler in self.schedulers.values():
            await scheduler.abort(named or list(scheduler.runs))
        return web.json_response({"status": "aborted", "aborted": len(named or ())})

    async def _pause(self, request: web.Request) -> web.Response:
        mode = request.query.get("mode", "abort")
        for scheduler in self.schedulers.values():
            await scheduler.pause({"keep": "in_place"}.get(mode, mode))
        return web.json_response({"status": "paused"})

    async def _resume(self, request: web.Request) -> web.Response:
        del request
        for scheduler in self.schedulers.values():
            await scheduler.resume()
        return web.json_response({"status": "resumed"})

    async def _is_paused(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"is_paused": self.schedulers[MODEL].paused})

    async def _reset(self, request: web.Request) -> web.Response:
        retract = request.query.get("reset_running_requests") == "true"
        held = [run for scheduler in self.schedulers.values() for run in scheduler.sampling]
        if held and not retract:
            return web.json_response({"success": False})
        for run in held:
            run.retractions += 1
        for scheduler in self.schedulers.values():
            scheduler.cache.clear()
        return web.json_response({"success": True})

    # --- weights -----------------------------------------------------------------------------------------------------------
    async def _weight_info(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"weight_version": self.schedulers[MODEL].version})

    async def _name_weights(self, request: web.Request) -> web.Response:
        name = self._body(request)["new_version"]
        for scheduler in self.schedulers.values():
            scheduler.version = name
        return web.json_response({"success": True, "new_version": name})

    async def _rpc(self, request: web.Request) -> web.Response:
        body = self._body(request)
        if body["method"] != "reload_weights":
            raise rpc_failed(f"'CPUWorker' object has no attribute '{body['method']}'")
        try:
            self.model.load(read_tensors(Path(body["kwargs"]["weights_path"]) / "model.safetensors"))
        except (UserError, OSError) as error:
            self.doomed = True
            raise rpc_failed(str(error)) from error
        return web.json_response({"results": [None]})

    async def _load_adapter(self, request: web.Request) -> web.Response:
        name, folder = self._body(request)["lora_name"], Path(self._body(request)["lora_path"])
        if name in self.schedulers:
            message = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            raise BadRequest(400, "InvalidUserInput", f"{message} 'load_inplace' to True.")
        delta = read_tensors(folder / "adapter_model.safetensors")["head"]
        tensors = {"embed": self.model.tensors["embed"], "head": self.model.tensors["head"] + delta}
        base = self.schedulers[MODEL]
        self.schedulers[name] = self._scheduler(ToyModel(tensors), base.version)
        if base.paused:
            await self.schedulers[name].pause("in_place")
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        name = self._body(request)["lora_name"]
        if self.schedulers[name].runs:  # they go on; only the name is gone
            self.schedulers[f"{name} (unloaded)"] = self.schedulers[name]
        del self.schedulers[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def rpc_failed(why: str) -> BadRequest:
    """What a worker raised, as the server tells it."""
    message = f"Call to collective_rpc method failed: Worker failed with error '{why}', please check the stack trace above"
    return BadRequest(500, "InternalServerError", f"{message} for the root cause")


def write_model(model: ToyModel, folder: Path) -> None:
    """As a model folder that the client can look into."""
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps({"vocab_size": model.vocab_size, "tie_word_embeddings": False}))
    save_file(dict(model.tensors), folder / "model.safetensors")


def read_tensors(file: Path) -> dict[str, Any]:
    """The tensors of one safetensors file."""
    from safetensors.numpy import load_file

    return load_file(file)
