"""The fake's calls that change the server: weights, adapters, memory."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from agentrl.engines.sglang.fake.adapters import Registry
from agentrl.engines.sglang.fake.groups import Groups
from agentrl.engines.sglang.fake.scheduler import Scheduler
from agentrl.errors import UserError

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


class Control:
    """Weight updates, adapters and memory. `model_path` is what /model_info says: the folder that was loaded last."""

    def __init__(self, scheduler: Scheduler, registry: Registry, model_path: str) -> None:
        self.model_path = model_path
        self._scheduler, self._registry, self._groups = scheduler, registry, Groups()
        self._session_open = self._released = False

    def add_to(self, app: web.Application) -> None:
        """Its routes."""
        for path, handler in {
            "/update_weights_from_disk": self._update_from_disk,
            "/begin_weight_update": self._begin_update,
            "/update_weights_from_tensor": self._update_from_tensor,
            "/update_weights_from_distributed": self._update_from_distributed,
            "/end_weight_update": self._end_update,
            "/update_weight_version": self._update_version,
            "/init_weights_update_group": self._join,
            "/destroy_weights_update_group": self._leave,
            "/load_lora_adapter": self._load_adapter,
            "/unload_lora_adapter": self._unload_adapter,
            "/release_memory_occupation": self._release,
            "/resume_memory_occupation": self._take_back,
        }.items():
            app.router.add_post(path, handler)

    async def _update_from_disk(self, request: web.Request) -> web.Response:
        body = await _body(request)
        folder = Path(body["model_path"])
        if not _has_weights(folder):
            message = f"Failed to get weights iterator: Repo id must use alphanumeric chars: '{folder}'.."
            return web.json_response({"success": False, "message": message, "num_paused_requests": 0}, status=400)
        self.model_path = str(folder)
        try:
            message = await self._write({"path": folder}, body)
        except UserError as error:  # rolling back, it reads the same folder again
            raise Died(str(error)) from error
        message = f"Succeeded to update model weights.{message}"
        return web.json_response({"success": True, "message": message, "num_paused_requests": 0})

    async def _write(self, weights: Mapping[str, Any], body: Mapping[str, Any]) -> str:
        """Gives what to add to the message of success."""
        if body.get("abort_all_requests"):
            await self._scheduler.abort(list(self._scheduler.runs))
        await self._scheduler.write(weights, body.get("weight_version"))
        if body.get("flush_cache", True) and not self._scheduler.flush():
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

    def _outside(self, what: str) -> web.Response:
        return _outcome(False, f"{what} must run between begin_weight_update() and end_weight_update()")

    async def _update_from_tensor(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if not self._session_open:
            return self._outside("update_weights_from_tensor")
        try:
            named: Any = _Unpickler(io.BytesIO(base64.b64decode(body["serialized_named_tensors"][0]))).load()
            return _outcome(True, f"Success{await self._write(dict(named), body)}")
        except (pickle.UnpicklingError, UserError) as error:
            raise Died(str(error)) from error

    async def _update_from_distributed(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if not self._session_open:
            return self._outside("update_weights_from_distributed")
        try:
            received = await self._groups.receive(body)
        except (KeyError, RuntimeError) as error:
            return _outcome(False, f"Failed to receive weights: {error}")
        try:
            return _outcome(True, f"Succeeded to update parameter online.{await self._write(received, body)}")
        except UserError as error:
            tail = "The full weights of the ModelRunner are partially updated. Please discard the whole weights."
            return _outcome(False, f"Failed to update parameter online: {error}. {tail}")

    async def _update_version(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if body.get("abort_all_requests", True):
            await self._scheduler.abort(list(self._scheduler.runs))
        self._scheduler.version = body["new_version"]
        message = f"Weight version updated to {body['new_version']}"
        return web.json_response({"success": True, "message": message, "new_version": body["new_version"]})

    async def _join(self, request: web.Request) -> web.Response:
        try:
            await self._groups.join(await _body(request))
        except RuntimeError as error:
            return _outcome(False, f"Failed to initialize custom process group: {error}.")
        return _outcome(True, "Succeeded to initialize custom process group.")

    async def _leave(self, request: web.Request) -> web.Response:
        if self._groups.leave((await _body(request))["group_name"]):
            return _outcome(True, "Succeeded to destroy custom process group.")
        return _outcome(False, "The group to be destroyed does not exist.")

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await _body(request)
        told = await self._registry.load(body["lora_name"], body["lora_path"])
        return web.json_response(told, status=200 if told["success"] else 400)

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        told = await self._registry.unload((await _body(request))["lora_name"])
        return web.json_response(told, status=200 if told["success"] else 400)

    async def _release(self, request: web.Request) -> web.Response:
        """Frees nothing, as on a CPU."""
        del request
        if not self._scheduler.idle:
            raise Died("release_memory_occupation should be called only when server is idle.")
        self._released = True
        self._scheduler.flush()
        return web.json_response(None)

    async def _take_back(self, request: web.Request) -> web.Response:
        del request
        if not self._released:
            raise Died("KeyError: 'kv_cache'")
        self._released = False
        return web.json_response(None)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.npz"))


async def _body(request: web.Request) -> Any:
    """aiohttp keeps what it has read, so the body can be asked for again."""
    raw = await request.text()
    return json.loads(raw) if raw else {}


def _outcome(success: bool, message: str) -> web.Response:
    return web.json_response({"success": success, "message": message}, status=200 if success else 400)
