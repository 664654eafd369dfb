"""Time, bytes and memory of a sharded step against the number of GPUs: where does the loss stop being cheap? No GPU is used.

    python -m benchmarks.scaling            # about a minute on 2 cores

Two parts. *Measured*, on this machine's CPU: gloo's collectives and the loss's step with 1, 2 and 4 processes, held against the
model's way of adding up: the rows' share of one process's time, slowed down as the slowest of processes is that do not talk,
and latency + size / bandwidth of every collective. *Derived*, for GPUs: kernel times are those of `benchmarks.floors` for b
of N rows; collectives are those of docs/distributed.md, at published link speeds and with NCCL's own latencies. Assumed:

- Hosts of 8 GPUs. A ring through several hosts goes as fast as NVLink or all of a host's network cards together, whichever is
  slower, times `EFFICIENCY`. Latency and protocols as in NCCL's `src/graph/tuning.cc`: the fastest of ring or tree (sums), in its
  protocols LL and Simple. Nothing overlaps: a step is its kernels, then its collectives.
- Floors leave out launches, and products' blocks do not stay in the cache. Features in half precision, D = E = 512, five rounds.
- Towers compute forward and backward at `MFU` of the rate of products. A teacher's forward and the gradients' all-reduce are not
  counted; either makes the loss's share smaller.
- "local" transports within each rank's own pairs, and is InfoNCE over all pairs beside OTTER over b.
- "released" gathers both N x N float32 problems and solves them on every rank: 116 accesses an entry, counted in
  `reference.released_targets`, and eager ClipLoss on its rows.

Writes ``benchmarks/results/scaling-cpu.{json,md}``.
"""
