"""Work that keeps a CPU busy: one input per container and one container per core, so that cores do not fight.

    kedge run examples/cpu_map.py
    kedge run examples/cpu_map.py --limit 2000000 --parts 32

`.map` sends the inputs as containers take them and gives the results in order. Functions that compute want no
`@kedge.concurrent`: several inputs in one Python process would share one core.
"""

from __future__ import annotations

import kedge

app = kedge.App("cpu-map")


@app.function(cpu=1.0)
def count_primes(start: int, stop: int) -> int:
    """How many primes there are from `start` up to `stop` (exclusive)."""
    sieve = bytearray([1]) * (stop - start)
    for divisor in range(2, int(stop**0.5) + 1):
        first = max(divisor * divisor, -(-start // divisor) * divisor)
        if first < stop:
            sieve[first - start :: divisor] = bytes(len(range(first, stop, divisor)))
    return sum(sieve) - sum(1 for number in (0, 1) if start <= number < stop)


@app.local_entrypoint()
def main(limit: int = 1_000_000, parts: int = 16) -> None:
    """Counts the primes below a limit."""
    bounds = [limit * part // parts for part in range(parts + 1)]
    counts = list(count_primes.map(bounds[:-1], bounds[1:]))
    print(f"primes per part: {counts[0]:,} in the first, {counts[-1]:,} in the last of {parts}")
    print(f"primes below {limit:,}: {sum(counts):,}")
