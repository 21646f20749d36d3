"""Continuous batching: a static cache of rows, each holding one sequence; a finished one is replaced by the next.

    admit   prefill a few waiting sequences into free rows; their first token comes from the prefill
    step    one token for every row, by the language expert alone
    read    the tokens of the step before: the host looks at them while the device works on the next one

On a GPU a step is one CUDA graph, sampling happens on the device, and pictures travel as uint8. When
memory runs out, the rows are halved and the unfinished sequences begin again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.cogvlm.decoder import Cache, Model
from workers.cogvlm.sequence import IMAGE, pack, position_ids, upload
from workers.cogvlm.vision import normalize

# Attention sees the cache up to the longest row, rounded up to this: one CUDA graph serves that many steps.
COLUMN_STEP = 128
# What stands in the message of a RuntimeError when memory is short: torch's host allocator, the driver, the libraries.
SHORT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# Stands for the token of a row whose logits are not all finite.
NOT_FINITE = -1


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: temperature 0 takes the likeliest; top_k 0 and top_p 1 cut nothing off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1, which cuts nothing off")


@dataclass(frozen=True)
class Request:
    """One sequence to continue.

    `pixels` is called when its turn comes and returns a square, uint8 [S, S, 3], or pixel values, float [3, S, S]; it
    returns None to refuse the sequence, which then costs no token. `pixels` None means no picture. `key` is what
    sampling is keyed by, so that its noise does not depend on its neighbours.
    """

    input_ids: Sequence[int]
    token_types: Sequence[int]
    pixels: Callable[[], Tensor | None] | None
    max_new_tokens: int
    key: int = 0


@dataclass
class Answer:
    """What was generated, without EOS; `seconds` last from prefill to the end.

    `finish` is `stop` (EOS), `length`, `refused` (it had no picture after all), or `not_finite`: a logit was NaN or
    infinite, and `tokens` are those before it.
    """

    tokens: list[int]
    finish: str
    prompt_tokens: int
    seconds: float
    logits: list[Tensor] = field(default_factory=list)


@dataclass(eq=False)
class _Sequence:
    """A request on its way: `drawn` tokens have been launched on the device, `tokens` have been read back."""

    index: int
    request: Request
    row: int
    begun: float
    drawn: int = 0
    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    finish: str = ""

    @property
    def length(self) -> int:
        """Tokens in the cache after the next step."""
        return len(self.request.input_ids) + self.drawn


@dataclass
class _Drawn:
    """Tokens on their way to the host, and which sequence each belongs to."""

    tokens: Tensor
    ready: torch.cuda.Event | None
    owners: list[tuple[int, _Sequence]]


class Generator:
    """Runs requests through a model, `rows` at a time.

    `columns` is the longest prompt plus its new tokens; `chunk` the sequences prefilled together. `eos` None generates
    to the limit. `keep_logits` records the logits of every token (parity checks).
    """

    def __init__(
        self,
        model: Model,
        *,
        rows: int,
        columns: int,
        chunk: int = 8,
        eos: int | None,
        sampling: Sampling | None = None,
        graphs: bool | None = None,
        keep_logits: bool = False,
    ) -> None:
        self.model = model
        self.rows = rows
        self.columns = -(-columns // 16) * 16  # SDPA's fast kernels want an aligned mask
        self.chunk = max(1, min(chunk, rows))
        self.eos = eos
        self.sampling = sampling or Sampling()
        self.graphs = model.device.type == "cuda" if graphs is None else graphs
        self.keep_logits = keep_logits
        self._cache: Cache | None = None
        self._state: Tensor
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None  # the memory that graphs share: torch's handle

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in the same order. Raises ValueError for a request longer than `columns`."""
        for request in requests:
            needed = len(request.input_ids) + request.max_new_tokens
            if needed > self.columns:
                raise ValueError(f"{needed} tokens (prompt and answer) do not fit in {self.columns} columns")
        answers: list[Answer | None] = [None] * len(requests)
        while None in answers:
            try:
                self._run(requests, answers)
            except RuntimeError as failure:
                if not is_out_of_memory(failure) or self.rows == 1:
                    raise
            if None in answers:
                self.release()
                self.rows //= 2
                self.chunk = max(1, min(self.chunk // 2, self.rows))
        return [answer for answer in answers if answer is not None]

    def release(self) -> None:
        """Give cache and graphs back; the next call allocates them again."""
        self._cache = None
        self._graphs, self._pool = {}, None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _run(self, requests: Sequence[Request], answers: list[Answer | None]) -> None:
        self._allocate()
        self._answers = answers
        self._slots: list[_Sequence | None] = [None] * self.rows
        self._pending: deque[_Drawn] = deque()
        waiting = deque(index for index, answer in enumerate(answers) if answer is None)
        while waiting or self._pending or any(self._slots):
            while waiting and self._slots.count(None) >= min(self.chunk, len(waiting)):
                self._admit(self._next(waiting, requests))
            if any(self._slots):
                live = self.rows if waiting else self._gather()
                self._step(live)
            # One step stays in flight, so that the device never waits for the host.
            while len(self._pending) > (1 if any(self._slots) else 0):
                self._read(self._pending.popleft())

    def _allocate(self) -> None:
        """Cache and state of the rows; both are used again by the next call, which finds every row idle."""
        if self._cache is not None:
            self._state.zero_()
            return
        device = self.model.device
        self._cache = Cache(self.model.config, self.rows, self.columns, self.model.dtype, device)
        # Of each row: last token, its rotary position, tokens in the cache, whether a sequence is there, sampling's key
        # and count. They live on the device: a step reads and advances them without the host, and a CUDA graph reads
        # the very memory that it was captured with.
        self._state = torch.zeros(6, self.rows, dtype=torch.int64, device=device)
        self._token, self._position, self._length, self._active, self._key, self._count = self._state

    def _next(self, waiting: deque[int], requests: Sequence[Request]) -> list[tuple[int, Request, Tensor | None]]:
        """Up to `chunk` waiting sequences with their pixels; one that is refused is answered."""
        batch: list[tuple[int, Request, Tensor | None]] = []
        while waiting and len(batch) < self.chunk:
            index = waiting.popleft()
            request = requests[index]
            pixels = request.pixels() if request.pixels else None
            if request.pixels and pixels is None:
                self._answers[index] = Answer([], "refused", len(request.input_ids), 0.0)
            else:
                batch.append((index, request, pixels))
        return batch

    def _admit(self, batch: list[tuple[int, Request, Tensor | None]]) -> None:
        """Prefill `batch` into free rows and draw each sequence's first token."""
        if not batch:
            return
        assert self._cache is not None
        device, begun = self.model.device, time.monotonic()
        free = [row for row, sequence in enumerate(self._slots) if sequence is None]
        sequences = [
            _Sequence(index, request, row, begun) for (index, request, _), row in zip(batch, free, strict=False)
        ]
        # Right-padded with mask 0: packing drops the padding before anything is computed.
        padded = max(len(request.input_ids) for _, request, _ in batch)
        ids, types, mask = torch.zeros(3, len(batch), padded, dtype=torch.int64)
        for i, (_, request, _) in enumerate(batch):
            count = len(request.input_ids)
            ids[i, :count] = torch.tensor(request.input_ids)
            types[i, :count] = torch.tensor(request.token_types)
            mask[i, :count] = 1
        positions = position_ids(types, mask)
        rows = upload(torch.tensor([sequence.row for sequence in sequences]), device)
        # NaN that a failed sequence left in a masked column would reach this one: 0 times NaN is NaN.
        self._cache.k[:, rows] = 0
        self._cache.v[:, rows] = 0
        logits = self.model.prefill(
            upload(ids, device),
            pack(types, mask, positions, device),
            self._pixels([pixels for _, _, pixels in batch if pixels is not None]),
            self._cache,
            rows,
        )
        last = mask.sum(1)
        first = torch.stack(
            (
                torch.zeros_like(last),
                positions.gather(1, last[:, None] - 1)[:, 0],
                last - 1,  # drawing the first token moves position and length on to where that token will stand
                torch.ones_like(last),
                torch.tensor([request.key for _, request, _ in batch]),
                torch.zeros_like(last),
            )
        )
        self._state[:, rows] = upload(first, device)
        for sequence in sequences:
            self._slots[sequence.row] = sequence
        self._draw(logits, rows, list(enumerate(sequences)))

    def _pixels(self, found: list[Tensor]) -> Tensor | None:
        if not found:
            return None
        batch = upload(torch.stack(found), self.model.device)
        return normalize(batch) if batch.dtype == torch.uint8 else batch

    def _step(self, live: int) -> None:
        """One token for the first `live` rows."""
        owners = [(row, sequence) for row, sequence in enumerate(self._slots[:live]) if sequence is not None]
        longest = max(sequence.length for _, sequence in owners)
        columns = min(self.columns, -(-longest // COLUMN_STEP) * COLUMN_STEP)
        logits = self._logits(live, columns)
        self._draw(logits, torch.arange(live, device=self.model.device), owners)

    def _logits(self, live: int, columns: int) -> Tensor:
        assert self._cache is not None
        cache, model = self._cache, self.model
        inputs = (self._token[:live], self._position[:live], self._length[:live])
        if not self.graphs:
            return model.step(*inputs, cache, columns)
        if (live, columns) not in self._graphs:
            # A step writes the same keys and values however often it runs, so warming up and capturing change nothing.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own gap
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    model.step(*inputs, cache, columns)
            torch.cuda.current_stream().wait_stream(stream)
            # One pool for all of them: they replay one at a time, and logits are read before the next one does.
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                logits = model.step(*inputs, cache, columns)
            self._graphs[live, columns] = (graph, logits)
        graph, logits = self._graphs[live, columns]
        graph.replay()
        return logits

    def _draw(self, logits: Tensor, rows: Tensor, owners: list[tuple[int, _Sequence]]) -> None:
        """Choose a token for each of `rows` from `logits` [len(rows), V], advance the rows, send the tokens home.

        `owners` says which of the logits belong to which sequence; idle rows have none.
        """
        tokens = draw(logits, self.sampling, self._key[rows], self._count[rows])
        tokens = torch.where(logits.isfinite().all(-1), tokens, NOT_FINITE)
        self._token[rows] = tokens.clamp_min(0)
        active = self._active[rows]
        self._position[rows] += active
        self._length[rows] += active
        self._count[rows] += active
        landing = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        landing.copy_(tokens, non_blocking=True)
        ready = None
        if tokens.is_cuda:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own gap
            ready.record()
        for i, sequence in owners:
            sequence.drawn += 1
            if self.keep_logits:
                sequence.logits.append(logits[i].float().cpu())
            if sequence.drawn == sequence.request.max_new_tokens:
                self._free(sequence)
        self._pending.append(_Drawn(landing, ready, owners))

    def _read(self, drawn: _Drawn) -> None:
        """Take tokens off the device; a sequence that has ended is answered and its row is free."""
        if drawn.ready is not None:
            drawn.ready.synchronize()
        tokens = drawn.tokens.tolist()
        for i, sequence in drawn.owners:
            token = tokens[i]
            if sequence.finish:
                continue  # drawn while the host had not seen the end yet
            if token == NOT_FINITE:
                sequence.finish = "not_finite"
            elif token == self.eos:
                sequence.finish = "stop"
            else:
                sequence.tokens.append(token)
                if len(sequence.tokens) == sequence.request.max_new_tokens:
                    sequence.finish = "length"
            if sequence.finish:
                self._free(sequence)
                self._answers[sequence.index] = Answer(
                    tokens=sequence.tokens,
                    finish=sequence.finish,
                    prompt_tokens=len(sequence.request.input_ids),
                    seconds=time.monotonic() - sequence.begun,
                    logits=sequence.logits,
                )

    def _free(self, sequence: _Sequence) -> None:
        if self._slots[sequence.row] is sequence:
            self._slots[sequence.row] = None
            self._state[:, sequence.row] = 0

    def _gather(self) -> int:
        """With nothing left to admit, move the last sequences together and step only half, a quarter .. of the rows."""
        assert self._cache is not None
        busy = len(self._slots) - self._slots.count(None)
        live = self.rows
        while live // 2 >= busy and live > 1:
            live //= 2
        free = [row for row in range(live) if self._slots[row] is None]
        for row in range(live, self.rows):
            sequence = self._slots[row]
            if sequence is not None:
                target = free.pop()
                self._cache.move(row, target)
                self._state[:, target] = self._state[:, row]
                self._state[:, row] = 0
                self._slots[row], self._slots[target], sequence.row = None, sequence, target
        return live


def draw(logits: Tensor, sampling: Sampling, keys: Tensor, counts: Tensor) -> Tensor:
    """One token id per row of `logits` [R, V], on the device.

    Sampling adds Gumbel noise that is a hash of (seed, key, count, token): the same for any batch, order or machine.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[:, -1:], float("-inf"))
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=True)
        shares = ordered.softmax(-1)
        ordered = ordered.masked_fill(shares.cumsum(-1) - shares >= sampling.top_p, float("-inf"))
        scores = scores.scatter(1, order, ordered)
    vocabulary = torch.arange(scores.shape[-1], device=scores.device)
    uniform = _uniform(sampling.seed, keys[:, None], counts[:, None], vocabulary)
    return (scores.double() - torch.log(-torch.log(uniform))).argmax(-1)


def _uniform(seed: int, keys: Tensor, counts: Tensor, tokens: Tensor) -> Tensor:
    """Uniform in (0, 1), float64: SplitMix64's finaliser (Steele et al. 2014) over the four, on wrapping int64."""

    def mixed(z: Tensor) -> Tensor:
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
        return z ^ ((z >> 31) & ((1 << 33) - 1))

    golden = -0x61C8864680B583EB
    z = mixed(keys + (seed % (1 << 62)) * 2 + 1)
    z = mixed(z + counts * golden)
    z = mixed(z + tokens * golden)
    return (((z >> 11) & ((1 << 53) - 1)).double() + 0.5) / (1 << 53)


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether an exception says that the device, or the host's allocator, has no memory left."""
    if isinstance(failure, torch.OutOfMemoryError):
        return True
    return isinstance(failure, RuntimeError) and any(text in str(failure) for text in SHORT_OF_MEMORY)


@torch.inference_mode()
def fit(model: Model, *, prompt_tokens: int, columns: int, most_rows: int = 256) -> tuple[int, int]:
    """Rows of the cache and sequences per prefill that fit in free memory, by a measured prefill of one picture.

    A tenth of what is free stays free: graphs, workspaces and fragmentation take their share.
    """
    config = model.config
    row_bytes = columns * Cache.bytes_per_token(config, model.dtype)
    if model.device.type != "cuda":
        rows = int(_host_memory() * 0.5 // row_bytes)
        return max(1, min(rows, 16, most_rows)), 4
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    types = torch.zeros(1, prompt_tokens, dtype=torch.int64)
    types[0, 1 : 1 + config.image_tokens] = IMAGE
    side = config.vision.image_size
    model.prefill(
        torch.zeros(1, prompt_tokens, dtype=torch.int64, device=model.device),
        pack(types, device=model.device),
        torch.zeros(1, 3, side, side, device=model.device),
        Cache(config, 1, prompt_tokens, model.dtype, model.device),
        torch.zeros(1, dtype=torch.int64, device=model.device),
    )
    prefill_bytes = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    free = int(torch.cuda.mem_get_info()[0] * 0.9)
    chunk = max(1, min(8, free // 10 // prefill_bytes))
    rows = (free - chunk * prefill_bytes) // row_bytes
    return max(1, min(int(rows), most_rows)), int(chunk)


def _host_memory() -> int:
    """Bytes that the machine can still give, by /proc/meminfo; 4 GiB where there is none."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 4 << 30
