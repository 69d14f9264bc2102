"""The server of network.py: SGLang's /generate and OpenAI's chat completions with ready replies, as lean as asyncio allows."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import tempfile
from pathlib import Path
from typing import Any

from live_episodes import CALL, TURNS, byte_level

from agentrl.rendering.template import TemplateRenderer

SPREAD = 0.5
"""It answers after latency * (1 +- SPREAD)."""


class Replies:
    """Ready bodies, but for what they repeat of the request. The first turns call the tool, the last answers."""

    def __init__(self, renderer: TemplateRenderer) -> None:
        self.opening = b"%d" % renderer.encode("<|im_start|>")[0]
        texts = [CALL] * (TURNS - 1) + ["It is Lima."]
        rng = random.Random(1)
        self.generated, self.completed = [], []
        for text in texts:
            ids = [*renderer.encode(text).tolist(), renderer.stop_ids[0]]
            logprobs = [-rng.expovariate(2.0) for _ in ids]
            self.generated.append(self._generated(text, ids, logprobs))
            self.completed.append(self._completed(text, ids, logprobs))

    def _generated(self, text: str, ids: list[int], logprobs: list[float]) -> tuple[bytes, bytes]:
        """Before and behind the prompt's ids; keys as SGLang 0.5.23 sends them."""
        meta = {
            "id": "2cad414eb2e1472a80212c50431c48b7",
            "finish_reason": {"type": "stop", "matched": ids[-1]},
            "prompt_tokens": 500,
            "weight_version": "v0",
            "num_retractions": 0,
            "reasoning_tokens": 0,
            "output_token_logprobs": [[logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)],
            "input_token_logprobs": [],
            "completion_tokens": len(ids),
            "cached_tokens": 100,
            "weight_versions": [{"version": "v0", "start": 0, "end": len(ids)}],
            "cached_tokens_details": None,
            "e2e_latency": 2.030239344999927198,
        }
        whole = json.dumps({"text": text, "output_ids": ids, "prompt_token_ids": 0, "meta_info": meta}, separators=(",", ":"))
        before, behind = whole.split('"prompt_token_ids":0', 1)
        return f'{before}"prompt_token_ids":'.encode(), behind.encode()

    def _completed(self, text: str, ids: list[int], logprobs: list[float]) -> bytes:
        function = {"name": "lookup", "arguments": '{"key": "the capital of Peru"}'}
        calls = [{"id": "call_0", "type": "function", "function": function}] if text == CALL else None
        entries = [
            {"token": chr(32 + token % 90), "logprob": logprob, "bytes": [32 + token % 90], "top_logprobs": []}
            for logprob, token in zip(logprobs, ids, strict=True)
        ]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": None if calls else text, "tool_calls": calls},
            "logprobs": {"content": entries},
            "finish_reason": "tool_calls" if calls else "stop",
        }
        usage = {"prompt_tokens": 500, "completion_tokens": len(ids), "total_tokens": 500 + len(ids)}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        return json.dumps(whole, separators=(",", ":")).encode()

    def to(self, path: bytes, body: bytes) -> list[bytes]:
        """The body of the reply to a request for tokens, in parts."""
        if path == b"/v1/chat/completions":
            return [self.completed[body.count(b'"tool_call_id"')]]
        begin = body.index(b"[", body.index(b'"input_ids"'))
        ids = body[begin : body.index(b"]", begin) + 1]
        before, behind = self.generated[(ids.count(self.opening) - 3) // 2]  # system, user, assistant; then two a turn
        return [before, ids, behind]


INFO: dict[bytes, Any] = {
    b"/server_info": {
        "version": "0.5.23",
        "model_path": "m",
        "max_req_input_len": 1 << 17,
        "tp_size": 1,
        "dp_size": 1,
        "pp_size": 1,
        "device": "cuda",
        "enable_deterministic_inference": False,
        "enable_lora": False,
        "enable_memory_saver": False,
        "enable_weights_cpu_backup": False,
        "incremental_streaming_output": False,
        "sampling_mask_max_tokens": 64,
    },
    b"/model_info": {"model_path": "m", "weight_version": "v0"},
    b"/v1/models": {"data": [{"id": "m", "max_model_len": 1 << 17}]},
}


class Served(asyncio.Protocol):
    """One connection: reads requests, answers each when its time has come."""

    def __init__(self, replies: Replies, latency: float) -> None:
        self.replies, self.latency = replies, latency
        self.loop = asyncio.get_running_loop()
        self.read = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.read += data
        while (end := self.read.find(b"\r\n\r\n")) >= 0:
            head = self.read[:end]
            at = head.lower().find(b"content-length:")
            whole = end + 4 + (int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0)
            if len(self.read) < whole:
                return
            path, body, self.read = head.split(b" ", 2)[1], self.read[end + 4 : whole], self.read[whole:]
            if path in (b"/generate", b"/v1/chat/completions"):
                wait = self.latency * random.uniform(1 - SPREAD, 1 + SPREAD)
                self.loop.call_later(wait, self.send, self.replies.to(path, body))
            else:
                self.send([json.dumps(INFO.get(path, {"success": True})).encode()])

    def send(self, parts: list[bytes]) -> None:
        if not self.transport.is_closing():
            length = sum(map(len, parts))
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % length
            self.transport.write(b"".join((head, *parts)))


async def serve(listening: socket.socket, latency: float) -> None:
    with tempfile.TemporaryDirectory() as made:
        replies = Replies(byte_level(Path(made)))
    server = await asyncio.get_running_loop().create_server(lambda: Served(replies, latency), sock=listening, backlog=8192)
    await server.serve_forever()
