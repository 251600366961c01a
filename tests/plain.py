"""The tests of a rollout once more, in plain scalar Python as the formulas stand on paper: what the engine, which does
many rollouts at once, is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log, sqrt

Tilt = Sequence[float]


def logsum(terms: Sequence[float]) -> float:
    top = max(terms)
    return top + log(sum(exp(term - top) for term in terms)) if top > -inf else -inf


@dataclass
class Process:
    prior: Sequence[float]
    threshold: float
    m: int
    mixture: list[float] = field(default_factory=list)
    reserve: float = 1.0
    t: int = 0
    boost: bool = False

    def __post_init__(self) -> None:
        self.mixture = self.mixture or [-inf] * len(self.prior)

    def update(self, log_e: Sequence[float]) -> None:
        h = 0.5 if self.t == 0 else 0.25 if self.boost else 1 / (2 * self.t + 20)
        w = self.reserve * h
        self.reserve -= w
        cap = log(2 * self.threshold) / self.m
        self.mixture = [logsum([old, log(w)]) + min(new, cap) for old, new in zip(self.mixture, log_e, strict=True)]
        self.t += 1
        self.boost = False

    def log_e(self) -> float:
        return logsum([*(log(p) + m for p, m in zip(self.prior, self.mixture, strict=True)), log(self.reserve)])

    def reached(self) -> bool:
        return self.log_e() >= log(self.threshold)

    def reset(self) -> None:
        self.mixture, self.reserve, self.t, self.boost = [-inf] * len(self.prior), 1.0, 0, False


class Stable:
    def __init__(self, delta: float) -> None:
        self.delta = delta
        self.pb, self.pn, self.dn, self.dd = 0.5, 500.0, 20.0, 20.0
        self.last: list[tuple[float, float]] = []
        self.b = self.n = self.dt = 0.0

    @property
    def p(self) -> float:
        return self.pb / self.pn

    @property
    def phi(self) -> float:
        return min(max(self.dn / self.dd, 1.0), 50.0)

    def add(self, b: float, n: float, dt: float) -> None:
        self.b, self.n, self.dt = self.b + b, self.n + n, self.dt + dt
        if self.dt < 5 or self.n < 1:
            return
        limit = 3 * (self.n * max(self.p, self.delta) + self.phi)
        self.pb, self.pn = 0.99 * self.pb + min(self.b, limit), 0.99 * self.pn + self.n
        self.last.append((self.b, self.n))
        if len(self.last) == 3:
            (b2, n2), (b1, n1), (b0, n0) = self.last
            f2, f0 = n1 / n2, n1 / n0
            mean = b1 / 2 + (f2 * b2 + f0 * b0) / 4
            if mean:
                self.dn = 0.995 * self.dn + 2 * min((b1 - f2 * b2) ** 2 / (1 + f2), (b1 - f0 * b0) ** 2 / (1 + f0))
                self.dd = 0.995 * self.dd + mean
            self.last.pop(0)
        self.b = self.n = self.dt = 0.0


class Binary:
    def __init__(self, rho: float, delta: float, m: int, alpha: float, beta: float) -> None:
        self.rho, self.delta = rho, delta
        self.bad = Process([1 / 6] * 6, 1 / alpha, m)
        self.ok = Process([0.3] + [0.1] * 7, 1 / beta, 12)
        self.stable = Stable(delta)
        self.degraded = self.healthy = self.healthy_here = self.incident = False
        self.clear()

    def clear(self) -> None:
        self.a = self.nc = self.b = self.ns = self.dt = 0.0

    def weight_changed(self) -> None:
        self.ok.reset()
        self.bad.boost = True
        self.healthy_here = False
        self.clear()

    def observe(self, dt: float, a: float, nc: float, b: float, ns: float) -> None:
        if self.dt == 0:
            self.p, self.phi = self.stable.p, self.stable.phi
        self.a, self.nc, self.b, self.ns, self.dt = self.a + a, self.nc + nc, self.b + b, self.ns + ns, self.dt + dt
        if self.dt >= 5 and self.nc >= 1 and ((self.ns >= 1 and self.nc + self.ns >= 20) or self.dt >= 60):
            self.judge()
            self.clear()
        elif self.dt >= 600:
            self.clear()
        self.stable.add(b, ns, dt)

    def p0(self, q: float) -> float:
        rho, delta, p, nc, ns = self.rho, self.delta, self.p, self.nc, self.ns
        a = rho * (nc * rho + ns)
        b = nc * rho * (delta - q) + ns * (delta - rho * p)
        return (-b + sqrt(b * b + 4 * a * ns * p * delta)) / (2 * a)

    def bet(self, q: float, clamp: Callable[[float], float]) -> float:
        x = q / (self.rho * self.p0(q) + self.delta) if self.rho else q / self.delta
        x = clamp(x)
        y = 1 - self.rho * (self.nc / self.ns) * (x - 1) if self.ns and self.rho else 1.0
        return (self.a * log(x) + self.b * log(y) - self.delta * self.nc * (x - 1)) / self.phi

    def judge(self) -> None:
        allowed = self.rho * self.p + self.delta
        most = 1 + 0.999 * self.ns / (self.rho * self.nc) if self.rho else inf
        incident = self.b > 3 * (self.ns * max(self.p, self.delta) + self.phi)
        if self.incident and not incident:
            self.bad.boost = True
        self.incident = incident
        grid = [min(k * allowed, 0.95) for k in (1.3, 1.8, 3, 6, 20, 100)]
        self.bad.update([self.bet(q, lambda x: min(max(x, 1.0), most)) for q in grid])
        self.degraded = self.degraded or self.bad.reached()
        if incident:
            return
        grid = [min(self.p, allowed), *(k * allowed for k in (0, 0.06, 0.15, 0.3, 0.45, 0.6, 0.8))]
        self.ok.update([self.bet(q, lambda x: min(max(x, 1e-9), 1.0)) for q in grid])
        if self.ok.reached():
            self.healthy = self.healthy_here = True


class Reward:
    def __init__(self, drop: float, alpha: float, beta: float) -> None:
        self.drop = drop
        self.bad, self.ok = Process([0.2] * 5, 1 / alpha, 3), Process([0.2] * 5, 1 / beta, 12)
        self.centre = [[1.0, 0.5], [1.0, 0.5]]
        self.degraded = self.healthy = self.healthy_here = False
        self.clear()

    def clear(self) -> None:
        self.c, self.s, self.dt = [0.0] * 3, [0.0] * 3, 0.0

    def weight_changed(self) -> None:
        self.ok.reset()
        self.bad.boost = True
        self.healthy_here = False
        self.clear()

    def observe(self, dt: float, c: Sequence[float], s: Sequence[float]) -> None:
        self.dt += dt
        self.c = [x + y for x, y in zip(self.c, c, strict=True)]
        self.s = [x + y for x, y in zip(self.s, s, strict=True)]
        if self.dt >= 5 and self.c[0] >= 1 and self.s[0] >= 1:
            self.judge()
            self.clear()
        elif self.dt >= 600:
            self.clear()

    def judge(self) -> None:
        def spread(counts: Sequence[float], centre: Sequence[float]) -> float:
            n, total, squares = counts
            m = centre[1] / centre[0]
            return squares - 2 * m * total + n * m * m

        def psi(bet: float) -> float:
            return -log(1 - bet) - bet

        (nc, sc, _), (ns, ss, _) = self.c, self.s
        fell, held = [], []
        for bet in (0.03, 0.1, 0.2, 0.4, 0.7):
            lc, ls = bet * ns / (nc + ns), bet * nc / (nc + ns)
            gain = nc * lc * (ss / ns - sc / nc - self.drop)
            price = psi(lc) * spread(self.c, self.centre[1]) + psi(ls) * spread(self.s, self.centre[0])
            fell.append(gain - price)
            held.append(-gain - price)
        self.bad.update(fell)
        self.ok.update(held)
        self.degraded = self.degraded or self.bad.reached()
        if self.ok.reached():
            self.healthy = self.healthy_here = True
        for centre, counts in zip(self.centre, (self.s, self.c), strict=True):
            centre[0] += counts[0]
            centre[1] += counts[1]


class Split:
    def __init__(self) -> None:
        self.process = Process([1 / 6] * 6, 1000.0, 3)
        self.mismatch = False

    def observe(self, share: float, n: float, total: float) -> None:
        if not total or not 0 < share < 1:
            return
        tilts = [log(k) for k in (0.5, 0.8, 0.93, 1.07, 1.25, 2)]
        self.process.update([n * tilt - total * log(1 + share * (exp(tilt) - 1)) for tilt in tilts])
        self.mismatch = self.mismatch or self.process.reached()
