"""Simulation-based calibration: what ranks of parameters among draws of guides say of the guides."""

from __future__ import annotations

import dataclasses
import functools
import math
from statistics import NormalDist

import numpy as np

from flowppl.checks import check_sizes

LEVEL = 0.05  # of all tests together
MIN_SIMULATIONS = 20
MIN_RANKED = 19  # ranks take so many values and one
MAX_FAILED = 0.1
MAX_NAMED = 6


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Calibration:
    r"""What simulation-based calibration found; ``print`` shows it, with the verdict and what is wrong.

    For each of n simulations parameters :math:`\theta^*` were drawn from the prior and data from the model, a guide was
    fitted to the data, and the rank of :math:`\theta^*` among L draws of the guide was taken: how many are smaller,
    from 0 to L. If the guides are the posteriors, every rank is equally probable.

    ===================== ============================================================================================
    ``verdict``           when
    ===================== ============================================================================================
    ``"calibrated"``      the ranks of no coordinate show anything else
    ``"miscalibrated"``   those of one coordinate or more do
    ``"not judged"``      they do not, but there are fewer than 20 of them, or more than a tenth of the fits failed
    ===================== ============================================================================================

    All tests together have a level of 5%: their p-values are corrected by Holm's method, for two tests of each
    coordinate. Calibration says that guides are right on average over the data that the prior makes, not that the one
    of your data is; and it sees each coordinate alone.

    Args:
        ranks: for each coordinate, such as ``tau`` and ``theta[0]``, an array of the n ranks. Where draws are equal to
            the parameter, one of the ranks that they leave open was drawn.
        num_draws: the number L of draws of each guide.
        failures: the reason for each simulation of which there are no ranks, by its number.

    Raises:
        ValueError: if the ranks are not integers from 0 to L, as many for each coordinate.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman: Validating Bayesian Inference Algorithms with Simulation-Based
        Calibration, 2018, arXiv 1804.06788. Yao, Vehtari, Simpson, Gelman: Yes, but Did It Work?, 2018, arXiv
        1802.02538 (VSBC). Holm: A Simple Sequentially Rejective Multiple Test Procedure, 1979.

    Example:
        >>> import numpy as np
        >>> from flowppl.diagnostics import Calibration
        >>> rng = np.random.default_rng(0)
        >>> true, draws = rng.normal(size=(200, 1)), rng.normal(size=(200, 99))
        >>> ranks = {"mu": np.sum(draws < true, axis=1), "tau": np.sum(draws + 0.5 < true, axis=1)}
        >>> found = Calibration(ranks, num_draws=99)
        >>> found.verdict, found.faults
        ('miscalibrated', {'tau': 'too high'})
    """

    ranks: dict[str, np.ndarray]
    num_draws: int
    failures: dict[int, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_sizes("Calibration", at_least=MIN_RANKED, num_draws=self.num_draws)
        arrays = [np.asarray(ranks) for ranks in self.ranks.values()]
        is_one_length = len({ranks.shape for ranks in arrays}) == 1 and arrays[0].ndim == 1 and arrays[0].size
        if not is_one_length or not all(
            ranks.dtype.kind in "iu" and ranks.min() >= 0 and ranks.max() <= self.num_draws for ranks in arrays
        ):
            raise ValueError(
                f"Calibration: ranks must be a dict with vectors of integers from 0 to {self.num_draws}, all as long, "
                f"got {', '.join(f'{ranks.dtype} {ranks.shape}' for ranks in arrays) or 'none'}"
            )
        signed = {name: ranks.astype(np.int64) for name, ranks in zip(self.ranks, arrays, strict=True)}
        object.__setattr__(self, "ranks", signed)

    @property
    def num_simulations(self) -> int:
        """The number n of simulations with ranks."""
        return len(next(iter(self.ranks.values())))

    @property
    def probabilities(self) -> dict[str, np.ndarray]:
        r"""For each coordinate the shares :math:`P(\theta < \theta^*)` of the guides, in the middle of their rank."""
        return {name: (ranks + 0.5) / (self.num_draws + 1) for name, ranks in self.ranks.items()}

    @property
    def p_values(self) -> dict[str, float]:
        r"""For each coordinate the p-value of Neyman's smooth test of uniform ranks.

        With :math:`\varphi_1, \dots, \varphi_4` the polynomials of these degrees that are orthonormal over the ranks,
        :math:`c_j = n^{-1/2} \sum_i \varphi_j(r_i)` of uniform ranks are nearly independent standard normals, and their
        squares sum to a :math:`\chi^2_4`. The first shows a shift, the second a wrong width. Against these it needs
        fewer simulations than a :math:`\chi^2` test of binned ranks.

        References:
            Neyman: Smooth Test for Goodness of Fit, 1937. Rayner, Best: Smooth Tests of Goodness of Fit, 1989.
        """
        squares = {name: float(np.sum(self._components(name) ** 2)) / 2 for name in self.ranks}
        return {name: math.exp(-half) * (1 + half) for name, half in squares.items()}

    @property
    def symmetry_p_values(self) -> dict[str, float]:
        r"""For each coordinate the p-value of the test of VSBC, that the histogram of the ranks is symmetric.

        It is asymmetric if the guides lie, on average, to one side of the parameters. The statistic is that of Yao et
        al. 2018, the largest distance between the distribution functions of :math:`p = P(\theta < \theta^*)` and
        :math:`1 - p`. Since these are no independent samples, the p-value is not that of two samples, which is too
        small, but exact: under symmetry, the distance is that of a random walk, whose steps are the sides of the p from
        the outermost one to the innermost.

        References:
            Butler: A Test for Symmetry Using the Sample Distribution Function, 1969.
        """
        return {name: _symmetry(2 * ranks - self.num_draws) for name, ranks in self.ranks.items()}

    @property
    def faults(self) -> dict[str, str]:
        """What is wrong with each miscalibrated coordinate: "too low", "too high", "too narrow", "too wide", or two.

        "Too low" is a guide that lies, on average, below the parameters; its ranks are too large. One that is too
        narrow has too many ranks at both ends (the shape of a U), one that is too wide too few.
        """
        tests = [(name, p) for found in (self.p_values, self.symmetry_p_values) for name, p in found.items()]
        tests.sort(key=lambda test: test[1])
        wrong = set()
        for done, (name, p) in enumerate(tests):
            if p * (len(tests) - done) > LEVEL:
                break
            wrong.add(name)
        return {name: self._fault(name) for name in self.ranks if name in wrong}

    @property
    def verdict(self) -> str:
        """``"calibrated"``, ``"miscalibrated"`` or ``"not judged"``."""
        return self._judge()[0]

    @property
    def advice(self) -> str:
        """What is wrong, and what to do next."""
        return self._judge()[1]

    def _judge(self) -> tuple[str, str]:
        n, faults = self.num_simulations, self.faults
        if faults:
            named = [f"{name} ({fault})" for name, fault in list(faults.items())[:MAX_NAMED]]
            more = f" and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
            return "miscalibrated", (
                f"The guides are wrong about {', '.join(named)}{more}: train longer, use a richer flow or other "
                "parameters, or correct the draws (resample=True)."
            )
        if n < MIN_SIMULATIONS:
            return "not judged", f"{n} simulations tell too little: {MIN_SIMULATIONS} or more are needed, better 100."
        if len(self.failures) > MAX_FAILED * (n + len(self.failures)):
            return "not judged", (
                f"{len(self.failures)} of {n + len(self.failures)} fits failed, and the others may be the easy ones. "
                f"The first: {next(iter(self.failures.values()))}"
            )
        return "calibrated", f"{n} simulations show nothing wrong with the guides, on average over data of the model."

    def _components(self, name: str) -> np.ndarray:
        table = _polynomials(self.num_draws)
        return table[self.ranks[name]].sum(axis=0) / math.sqrt(self.num_simulations)

    def _fault(self, name: str) -> str:
        """The sd, in that of the guide, is told by the quartiles of the parameters, the side by symmetry."""
        p = np.quantile(self.probabilities[name], [0.25, 0.75])
        low, high = (NormalDist().inv_cdf(each) for each in p)
        is_cut = min(p[0], 1 - p[1]) < 1 / (self.num_draws + 1)  # beyond all draws, nobody knows how far
        error = 3 / math.sqrt(self.num_simulations)  # 2.6 standard errors of the logarithm of an sd from quartiles
        log_sd = math.log((high - low) / 1.349) if high > low else -math.inf
        shift, width, *_ = self._components(name)
        found = []
        if log_sd > error:
            found.append("too narrow")
        elif log_sd < -error and not is_cut:
            found.append("too wide")
        if _symmetry(2 * self.ranks[name] - self.num_draws) < 0.01:
            found.insert(0, "too low" if shift > 0 else "too high")
        if not found and max(abs(shift), abs(width)) > 2:
            is_shift = abs(shift) > abs(width)
            words = ("too low", "too high") if is_shift else ("too narrow", "too wide")
            found.append(words[0] if (shift if is_shift else width) > 0 else words[1])
        return " and ".join(found) or "of another shape"

    def __repr__(self):
        return f"Calibration({self.verdict!r}, {self.num_simulations} simulations, {len(self.ranks)} coordinates)"

    def __str__(self):
        total = self.num_simulations + len(self.failures)
        rows = {"simulations": f"{self.num_simulations} of {total}, with {self.num_draws} draws each"}
        if self.failures:
            first = next(iter(self.failures))
            rows["failed"] = f"{len(self.failures)} of {total}, the first number {first}: {self.failures[first]}"
        uniform, symmetric, faults = self.p_values, self.symmetry_p_values, self.faults
        for label, found in (("uniform ranks", uniform), ("symmetric ranks", symmetric)):
            worst = min(found, key=found.__getitem__)
            rows[label] = f"smallest p-value of {len(found)} coordinates {found[worst]:.2g}, of {worst}"
        for name in list(faults)[:MAX_NAMED]:
            rows[name] = f"{faults[name]}: p-values {uniform[name]:.2g} (uniform), {symmetric[name]:.2g} (symmetric)"
        table = "\n".join(f"  {name:<16} {value}" for name, value in rows.items())
        return f"{self.verdict}\n{table}\n{self.advice}"


@functools.lru_cache(maxsize=8)
def _polynomials(num_draws: int) -> np.ndarray:
    """The values of four polynomials at each rank: of mean 0, variance 1 and uncorrelated over all ranks."""
    powers = np.vander(np.linspace(-1, 1, num_draws + 1), 5, increasing=True)
    basis, triangle = np.linalg.qr(powers)
    return (basis * np.sign(np.diag(triangle)))[:, 1:] * math.sqrt(num_draws + 1)


def _symmetry(positions: np.ndarray) -> float:
    """The p-value of symmetry about 0 of integers."""
    positions = positions[positions != 0]
    if not len(positions):
        return 1.0
    sizes, places = np.unique(-np.abs(positions), return_inverse=True)
    # Numbers of one size have no order: the walk is looked at before and after all of them.
    walk = np.cumsum(np.bincount(places, weights=np.sign(positions), minlength=len(sizes)))
    return _reaches(len(positions), round(float(np.abs(walk).max())))


@functools.lru_cache(maxsize=4096)
def _reaches(num_steps: int, height: int) -> float:
    """The probability that a walk of steps up or down, alike probable, comes so far from its start."""
    if height <= 1:
        return 1.0
    inside = np.zeros(2 * height - 1)
    inside[height - 1] = 1.0
    for _ in range(num_steps):
        inside = np.convolve(inside, [0.5, 0.0, 0.5], "same")
    return max(1.0 - float(inside.sum()), 0.0)


def binomial_band(number: int, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From where to where the numbers of uniform ranks in all bins go, with a probability of 95% or more.

    Args:
        number: the number n of ranks.
        shares: the probability of each bin; each leaves its range with at most 5% divided by the number of bins.
    """
    tail = LEVEL / len(shares) / 2
    counts = np.arange(number + 1)
    log_choose = np.array([math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1) for k in counts])
    log_mass = log_choose + counts * np.log(shares)[:, None] + (number - counts) * np.log1p(-shares)[:, None]
    below = np.cumsum(np.exp(log_mass), axis=1)
    return np.argmax(below > tail, axis=1), np.argmax(below >= 1 - tail, axis=1)
