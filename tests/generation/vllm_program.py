"""What emlib uses of vLLM's server, over real HTTP, with a model of transformers behind it: `serve FOLDER --port N`.

It does as vLLM 0.32 did on a CPU, errors included; test_vllm_program.py asks a real one the same.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from emlib.config import FolderModel, Sampling
from emlib.generation.sample import draw
from emlib.models import adapters
from emlib.models.load import ChatModel, load
from emlib.models.logprobs import head, last_hidden, token_logprobs

OURS = {"prompt", "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
        "presence_penalty", "frequency_penalty"}


class Served:
    """The model, its adapters by name, and every body that was posted. `lie` is added to every -log p.

    `rank` is the largest of adapters. With `head` adapters may change the head, where prompts' log-probabilities end
    the engine. With `spills` the base is computed under the last adapter while one is asked for, as on a CPU. `most`
    and `mixed` are the most requests, and the most models of answers, that were under way at once. After
    `answers_left` answers there are only errors. With `cuts` seeded prompts end it that do not fit into a batch. It
    says that it takes `length` tokens.
    """

    def __init__(self, chat: ChatModel, lie: float = 0.0, rank: int = 512, head: bool = False,
                 spills: bool = False, cuts: bool = False) -> None:
        self.chat, self.lie, self.rank, self.head, self.spills, self.cuts = chat, lie, rank, head, spills, cuts
        self.lock, self.counting = threading.Lock(), threading.Lock()
        self.folders: dict[str, Path] = {}
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.under_way, self.most, self.mixed = Counter[tuple[str, bool]](), 0, 0
        self.tokens = 0
        self.answers_left: int | None = None
        self.length: int | None = None

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("_lora_adapter"):
            with self.lock:
                self.posted.append((path, body))
                return self._adapter(path, body)
        self._count(body, 1)
        try:
            with self.lock:
                self.posted.append((path, body))
                return self._completion(body)
        finally:
            self._count(body, -1)

    def _count(self, body: dict[str, Any], more: int) -> None:
        with self.counting:
            self.under_way[body["model"], "seed" in body] += more
            self.tokens += more * len(body["prompt"])
            self.most = max(self.most, self.under_way.total())
            self.mixed = max(self.mixed, sum(count > 0 for (_, answer), count in self.under_way.items() if answer))

    def _adapter(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            return (200, "removed") if self.folders.pop(name, None) else _error(
                404, f"The lora adapter '{name}' cannot be found.")
        settings = Path(body["lora_path"]) / "adapter_config.json"
        if not settings.is_absolute() or not settings.is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for {body['lora_path']}")
        if name in self.folders:
            return _error(400, f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
                               "place, set 'load_inplace' to True.")
        rank = json.loads(settings.read_text())["r"]
        if rank > self.rank:
            return _error(500, f"Call to add_lora method failed: Worker failed with error 'LoRA rank {rank} is greater "
                               f"than max_lora_rank {self.rank}.'")
        self.folders[name] = settings.parent
        return 200, "added"

    def _completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        if ("prompt_logprobs" in body and self.head) or ("seed" in body and self.cuts and self.tokens > 2048):
            return _error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
        if "seed" in body and self.answers_left is not None:
            self.answers_left -= 1
            if self.answers_left < 0:
                return _error(500, "out of answers")
        model = body["model"]
        if model == "base" and self.spills and any(self.under_way[name, "seed" in body] for name in self.folders):
            model = list(self.folders)[-1]
        if model == "base":
            return 200, {"choices": [self._choice(self.chat.model, body)]}
        if model not in self.folders:
            return _error(404, f"The model `{model}` does not exist. Valid aliases: base.")
        with adapters.loaded(self.chat.model, self.folders[model]) as under:
            return 200, {"choices": [self._choice(under, body)]}

    @torch.inference_mode()
    def _choice(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        assert set(body) >= OURS, f"left to the server's defaults: {OURS - set(body)}"
        ids = torch.tensor(body["prompt"])
        if "prompt_logprobs" in body:
            assert body["cache_salt"], "would be answered from the cache"
            said = token_logprobs(model, ids)
            return {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": [None, *(
                {str(token): {"logprob": one - self.lie, "rank": 1}}
                for token, one in zip(body["prompt"][1:], said, strict=True))]}
        random, drawn = torch.Generator().manual_seed(body["seed"]), []
        sampling = Sampling(temperature=body["temperature"], top_p=body["top_p"])
        while len(drawn) < body["max_tokens"] and not (drawn and drawn[-1] in body["stop_token_ids"]):
            logits = head(model)(last_hidden(model, ids[None], None)[:, -1])
            drawn.append(int(draw(logits, torch.rand(1, generator=random), sampling)[0]))
            ids = torch.cat([ids, torch.tensor(drawn[-1:])])
        ended = drawn[-1] in body["stop_token_ids"]
        return {"index": 0, "text": "not looked at", "finish_reason": "stop" if ended else "length", "token_ids": drawn}


def _error(code: int, message: str) -> tuple[int, Any]:
    return code, {"error": {"message": message, "type": "as vLLM calls it", "param": None, "code": code}}


class Server(ThreadingHTTPServer):
    request_queue_size = 1024  # as many connections at once as a client may open; http.server has 5


def server(served: Served, port: int = 0) -> Server:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            card = {"id": "base", "max_model_len": served.length}
            self._say(200, {"data": [card]} if self.path == "/v1/models" else "")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._say(*served.post(self.path, body))

        def _say(self, status: int, what: Any) -> None:
            text = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Server(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    asked = sys.argv[1:]
    assert asked[0] == "serve"
    assert os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert not [name for name in os.environ if name.endswith("_API_KEY")], "keys go to no server"
    print("loading", asked[1], flush=True)
    model = load(FolderModel(kind="folder", path=asked[1], dtype="float32"), Path())
    served = Served(model, rank=int(asked[asked.index("--max-lora-rank") + 1]),
                    head="--lora-target-modules" not in asked, spills=True,
                    cuts="--no-enable-chunked-prefill" not in asked)
    served.length = int(asked[asked.index("--max-model-len") + 1])
    server(served, int(asked[asked.index("--port") + 1])).serve_forever()
