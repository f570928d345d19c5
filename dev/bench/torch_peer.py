#!/usr/bin/env python3
"""torch_peer.py attention | step MODEL [--toy | --cpu] - PyTorch at the work that our
kernels and trainer do. JSON lines.

For dev/gpu_check.sh, and with --cpu for dev/bench/cpu.sh.

attention   scaled_dot_product_attention, causal, forward and backward, with its FlashAttention-2 and its
            cuDNN backend: 16K tokens of width 2048 in heads of 128 and 64, as build/bench_cuda runs them.
            Events between queued calls, medians
step        whole training steps of MODEL (gpt2-124m, llama-1b): torch.compile, SDPA, autocast to bf16
            over fp32 weights, fused AdamW, clipping, random tokens; tokens/s from the median step,
            after those in which it compiles
--cpu       the step in fp32 on the CPU, eager, with SDPA and fused AdamW: --batch sequences of --length tokens at once
--toy       tiny, on the CPU if there is no GPU, uncompiled: to see that it runs

FLOP as everywhere here: 4 per visible pair and channel forward, 10 backward (5 products to the forward's 2).
"""
import argparse
import json
import math
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def emit(**row):
    print(json.dumps(row), flush=True)


# ---- attention -------------------------------------------------------------------------------------------------------


def median_ms(run, sets=2):
    """As in bench_cuda.cu: all calls are queued, events stand between them; warm-up, then as many
    rounds as take some 0.15 s."""
    if DEVICE == "cpu":
        begin = time.perf_counter()
        run(0)
        return 1e3 * (time.perf_counter() - begin)
    rounds = 4
    for attempt in range(2):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        events[0].record()
        for i in range(rounds):
            run(i % sets)
            events[i + 1].record()
        torch.cuda.synchronize()
        median = statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:]))
        rounds = max(9, min(100, int(150 / median)))
    return median


def attention(toy):
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for head_dim in (128, 64):
        for L in (72,) if toy else (2048, 4096, 8192, 16384):
            shape = (2, 2, L, head_dim) if toy else (16384 // L, 2048 // head_dim, L, head_dim)
            q, k, v = ([torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
                       for _ in range(3))
            dout = [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)]
            flop = shape[0] * shape[1] * L * (L + 1) / 2 * head_dim * 1e-9  # GFLOP per ms is TFLOP/s
            for peer, backend in backends.items():
                where = f"d{head_dim}_L{L}_{peer}"
                try:
                    with sdpa_kernel(backend):
                        attend = lambda i: F.scaled_dot_product_attention(q[i], k[i], v[i], is_causal=True)
                        with torch.no_grad():
                            forward = median_ms(attend)
                        out = [attend(i) for i in range(2)]
                        backward = median_ms(
                            lambda i: torch.autograd.grad(out[i], (q[i], k[i], v[i]), dout[i], retain_graph=True))
                        both = median_ms(lambda i: torch.autograd.grad(attend(i), (q[i], k[i], v[i]), dout[i]))
                except RuntimeError as e:
                    emit(name=f"attention_{where}", missing=str(e).strip().splitlines()[-1][:200])
                    continue
                for what, ms, count in (("forward", forward, 4), ("backward", backward, 10), ("both", both, 14)):
                    emit(name=f"attention_{what}_{where}", value=count * flop / ms, unit="TFLOP/s", ms=ms)


# ---- whole steps -----------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-5)


class Block(nn.Module):
    """Pre-norm attention and MLP; `llama`: RMSNorm, rotary embedding, grouped KV heads,
    SwiGLU, no biases; else GPT-2."""

    def __init__(self, dim, heads, kv_heads, ffn, llama):
        super().__init__()
        self.heads, self.kv_heads, self.llama, self.head_dim = heads, kv_heads, llama, dim // heads
        norm, bias = (RMSNorm, False) if llama else (nn.LayerNorm, True)
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)
        self.up = nn.Linear(dim, (2 if llama else 1) * ffn, bias=bias)
        self.down = nn.Linear(ffn, dim, bias=bias)

    def attend(self, x, rotation):
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.llama:
            q, k = rotate(q, rotation), rotate(k, rotation)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return self.proj(out.transpose(1, 2).reshape(B, T, C))

    def forward(self, x, rotation):
        x = x + self.attend(self.norm1(x), rotation)
        h = self.up(self.norm2(x))
        if self.llama:
            gate, up = h.chunk(2, dim=-1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(h, approximate="tanh")
        return x + self.down(h)


def rotate(x, rotation):
    cos, sin = rotation
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Model(nn.Module):
    def __init__(self, layers, dim, heads, kv_heads, ffn, vocab, length, llama, dtype):
        super().__init__()
        self.dtype = dtype
        self.embed = nn.Embedding(vocab, dim)
        self.positions = None if llama else nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, kv_heads, ffn, llama) for _ in range(layers))
        self.norm = RMSNorm(dim) if llama else nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        if not llama:
            self.head.weight = self.embed.weight
        half = dim // heads // 2
        angles = torch.arange(length)[:, None] * 10000 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight
        x = x.to(self.dtype)
        for block in self.blocks:
            x = block(x, (self.cos, self.sin))
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


# layers, width, heads, KV heads, MLP width, vocabulary (GPT-2's is padded to a multiple of 64, which is faster),
# length, llama; sequences in a step. The trainer's flags for the same stand in gpu_check.sh
MODELS = {
    "gpt2-124m": ((12, 768, 12, 12, 3072, 50304, 1024, False), 64),
    "llama-1b": ((16, 2048, 16, 8, 8192, 32000, 8192, True), 4),
}
TOY = {"gpt2-124m": ((2, 64, 4, 4, 256, 128, 48, False), 4), "llama-1b": ((2, 64, 4, 2, 176, 128, 48, True), 4)}


def step(name, micro, steps, toy, cpu):
    """`cpu`: None, or (sequences of a step, tokens of a sequence) in fp32."""
    sizes, batch = (TOY if toy else MODELS)[name]
    if cpu:
        batch = micro = cpu[0]
        sizes = (*sizes[:6], cpu[1], sizes[7])
    dtype = torch.float32 if cpu else torch.bfloat16
    vocab, length = sizes[5], sizes[6]
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(7)
    model = Model(*sizes, dtype).to(DEVICE)
    matrices, others = ([p for p in model.parameters() if (p.dim() == 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=DEVICE == "cuda" or bool(cpu))
    run = model if toy or cpu else torch.compile(model)
    tokens = torch.randint(0, min(vocab, 32000), (8, batch, length + 1), device=DEVICE)
    times, losses = [], []
    while len(times) < steps:
        data = tokens[len(times) % len(tokens)]
        begin = time.perf_counter()
        for first in range(0, batch, micro):
            part = data[first : first + micro]
            with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=not cpu):
                loss = run(part[:, :-1], part[:, 1:]) * (micro / batch)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item() * batch / micro)  # waits for the device
        times.append(time.perf_counter() - begin)
    if not all(math.isfinite(x) for x in losses):
        raise SystemExit(f"torch_peer.py: error: the loss of {name} is not finite: {losses}")
    ms = 1e3 * statistics.median(times[len(times) // 3 :])
    memory = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    emit(name=f"step_{name}" + (f"_B{batch}_T{length}" if cpu else ""), value=1e3 * batch * length / ms,
         unit="tokens/s", ms=ms, memory=memory, first_loss=losses[0], last_loss=losses[-1])


def main():
    global DEVICE
    parser = argparse.ArgumentParser(description="PyTorch at the work that our kernels and trainer do")
    parser.add_argument("what", choices=("attention", "step"))
    parser.add_argument("model", nargs="?", choices=sorted(MODELS))
    parser.add_argument("--micro", type=int, default=2, help="sequences at once")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="the step in fp32 on the CPU")
    parser.add_argument("--batch", type=int, default=4, help="with --cpu: sequences of a step")
    parser.add_argument("--length", type=int, default=256, help="with --cpu: tokens of a sequence")
    arguments = parser.parse_args()
    if arguments.what == "step" and not arguments.model:
        parser.error("step needs a model")
    if arguments.cpu and arguments.what != "step":
        parser.error("--cpu is of steps only")
    if arguments.cpu:
        DEVICE = "cpu"
    if DEVICE == "cpu" and not arguments.toy and not arguments.cpu:
        parser.error("PyTorch sees no GPU here; --cpu and --toy run on the CPU")
    emit(name="torch", version=torch.__version__, device=torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU")
    if arguments.what == "attention":
        attention(arguments.toy)
    else:
        step(arguments.model, arguments.micro, arguments.steps, arguments.toy,
             (arguments.batch, arguments.length) if arguments.cpu else None)


if __name__ == "__main__":
    main()
