"""Draws of Markov chains, with what they say of their own convergence."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from flowppl.inference.chains import NUM_PLANNED, Walk
from flowppl.inference.convergence import effective_draws, r_hat
from flowppl.inference.diagnostics import Search
from flowppl.inference.importance import coordinates, k_hat_threshold

# What the verdicts rest on, by Vehtari et al., arXiv 1903.08008.
MAX_R_HAT = 1.01
MIN_EFFECTIVE = 100  # for each chain
LOST_R_HAT = 1.05  # what more draws hardly bring down
NUM_ROWS = 20  # of the table that print shows


@dataclasses.dataclass(frozen=True, repr=False)
class ChainsBase(abc.ABC):
    """Draws of Markov chains, with what they say of their own convergence."""

    draws: Mapping[str, Any]
    latents: tuple[str, ...]
    walk: Walk
    fit: Any

    @property
    def num_chains(self) -> int:
        """The number of chains."""
        return len(next(iter(self.draws.values())))

    @property
    def num_samples(self) -> int:
        """The number of draws in each chain."""
        return int(next(iter(self.draws.values())).shape[1])

    @property
    def acceptance(self) -> float:
        """The share of the guide's proposals that was accepted."""
        return self.walk.acceptance

    @property
    def num_proposals(self) -> int:
        """The guide's proposals for each draw."""
        return self.walk.num_proposals

    @property
    def nuts(self) -> bool:
        """Whether a transition of the host's NUTS followed the proposals for each draw."""
        return self.walk.nuts

    @property
    def r_hat(self) -> float:
        """The largest R-hat of a coordinate: below 1.01 where chains agree. NaN if no coordinate varies."""
        return max((row["r_hat"] for row in self._varying.values()), default=math.nan)

    @property
    def ess(self) -> float:
        """The smallest effective sample size of a coordinate, in bulk or tails, of all chains together."""
        return min((row["ess"] for row in self._varying.values()), default=math.nan)

    @property
    def verdict(self) -> str:
        """``"good"``, ``"too few draws"``, ``"bulk only"`` or ``"do not trust"``."""
        return self._judge()[0]

    @property
    def advice(self) -> str:
        """What is good, what is not, and what to do next."""
        return self._judge()[1]

    def summary(self) -> dict[str, dict[str, float]]:
        """For each coordinate of the latents, such as ``z[0]``: mean, sd, quantiles, effective draws and R-hat.

        Returns:
            A dict by coordinate of dicts with the keys ``mean``, ``sd``, ``5%``, ``50%``, ``95%``, ``ess`` and
            ``r_hat``. The last two are NaN of a coordinate that does not vary.
        """
        return {label: dict(row) for label, row in self._rows.items()}

    def print_summary(self) -> None:
        """Print the verdict and a table of all coordinates of the latents."""
        print(self._table(len(self._rows)))

    def _samples(self, group_by_chain: bool) -> dict[str, Any]:
        """The draws, with an axis for the chains or with one chain after the other."""
        if group_by_chain:
            return dict(self.draws)
        return {name: value.reshape(-1, *value.shape[2:]) for name, value in self.draws.items()}

    @cached_property
    def _rows(self) -> dict[str, dict[str, float]]:
        rows: dict[str, dict[str, float]] = {}
        for name in self.latents:
            value = _numpy(self.draws[name]).astype(np.float64)
            flat = value.reshape(*value.shape[:2], -1)
            labels = coordinates({name: value[0, :1]})
            low, median, high = np.quantile(flat, [0.05, 0.5, 0.95], axis=(0, 1))
            columns = {
                "mean": flat.mean(axis=(0, 1)),
                "sd": flat.std(axis=(0, 1), ddof=1),
                "5%": low,
                "50%": median,
                "95%": high,
                "ess": effective_draws(flat),
                "r_hat": r_hat(flat),
            }
            for i, label in enumerate(labels):
                rows[label] = {key: float(column[i]) for key, column in columns.items()}
        return rows

    @property
    def _varying(self) -> dict[str, dict[str, float]]:
        return {label: row for label, row in self._rows.items() if not math.isnan(row["r_hat"])}

    def _judge(self) -> tuple[str, str]:
        wanted = MIN_EFFECTIVE * self.num_chains
        search = self._search
        if search is not None and search.fault:
            return "do not trust", f"The chains start from the guide and stay where it is. {search.fault}"
        helps = "pass nuts=True" if not self.nuts and self.walk.can_run_nuts else "train the guide longer"
        if not self.nuts and self.acceptance == 0:
            return "do not trust", f"No proposal of the guide was accepted, so the chains never moved: {helps}."
        if not self.r_hat < LOST_R_HAT:
            return "do not trust", (
                f"The chains do not agree (R-hat {self.r_hat:.2f}): they stay for long where they are, or have not met "
                f"the same modes; {helps}, or raise num_samples."
            )
        if self.r_hat >= MAX_R_HAT or self.ess < wanted:
            more = self.num_samples * max(2.0, 1.5 * wanted / max(self.ess, 1.0))
            return "too few draws", (
                f"R-hat is {self.r_hat:.3f} (limit {MAX_R_HAT}), and {self.ess:.0f} draws are effective, of {wanted} "
                f"that are needed: raise num_samples to {math.ceil(more / 100) * 100} or so."
            )
        limit = k_hat_threshold(NUM_PLANNED)
        if not self.nuts and self.walk.k_hat > limit:
            return "bulk only", (
                "Means and central intervals can be used, but the rarest places are proposed far too seldom (k-hat "
                f"{self.walk.k_hat:.2f}, limit {limit:.2f}), so the tails need far longer chains: {helps}."
            )
        known = "a mode that it never visits would not show" if search is None else str(search)
        return "good", f"The draws are of the posterior, as far as chains can tell that start from the guide: {known}."

    @property
    def _search(self) -> Search | None:
        """What the fit knows of modes that the guide does not have."""
        return None if self.fit.history is None else self.fit.history.check.search

    def _table(self, num_rows: int) -> str:
        proposals = f"{self.num_proposals} of the guide for each draw, {self.acceptance:.0%} accepted"
        nuts = "after these, one for each draw" if self.nuts else "none"
        rows = {
            "draws": f"{self.num_chains} chains of {self.num_samples}",
            "R-hat": f"{self.r_hat:.3f} (limit {MAX_R_HAT})",
            "effective draws": f"{self.ess:.0f} of {self.num_chains * self.num_samples}",
            "proposals": proposals,
            "NUTS moves": nuts,
        }
        facts = "\n".join(f"  {name:<16} {value}" for name, value in rows.items())
        worst = sorted(self._rows, key=lambda label: -np.nan_to_num(self._rows[label]["r_hat"], posinf=np.inf))
        shown = [label for label in self._rows if label in set(worst[:num_rows])]
        width = max([*map(len, shown), 4])
        columns = ("mean", "sd", "5%", "50%", "95%", "ess", "r_hat")
        lines = [" " * width + "".join(f"{column:>10}" for column in columns)]
        for label in shown:
            row = self._rows[label]
            numbers = "".join(f"{row[column]:>10.4g}" for column in columns[:5])
            lines.append(f"{label:<{width}}{numbers}{row['ess']:>10.0f}{row['r_hat']:>10.3f}")
        if len(shown) < len(self._rows):
            lines.append(f"... the {len(shown)} of {len(self._rows)} coordinates with the largest R-hat")
        return f"{self.verdict}\n{facts}\n{self.advice}\n\n" + "\n".join(lines)

    def __repr__(self):
        numbers = f"r_hat={self.r_hat:.3f}, ess={self.ess:.0f}, acceptance={self.acceptance:.2f}, nuts={self.nuts}"
        return f"Chains({self.verdict!r}, {self.num_chains} x {self.num_samples}, {numbers})"

    def __str__(self):
        return self._table(NUM_ROWS)


def _numpy(value: Any) -> np.ndarray:
    """A NumPy array of either language's."""
    return value.numpy(force=True) if hasattr(value, "numpy") else np.asarray(value)
