"""How far a fitted guide can be trusted, from its importance weights and, if there are any, from reference draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from flowppl.inference.comparison import MAX_MISSED, MAX_MOMENT_ERROR, Comparison, compare
from flowppl.inference.importance import (
    MIN_BATCH,
    MIN_MARGINAL,
    NUM_BATCHES,
    as_weights,
    batch_size,
    coordinates,
    effective,
    k_hat,
    k_hat_threshold,
    marginal_k_hat,
    weigh,
)

# What the verdicts rest on. A normal guide that is 0.3 sd off in one direction has a gap of 0.045 nats.
MAX_GAP = 0.05
NO_GAP = 0.001  # nats, and share of the posterior where the guide hardly draws: the weights are all but equal
MAX_NONFINITE = 0.1
MAX_ROUND_TRIP = 0.01
MIN_ESS = 100
MAX_MISSING = 0.05  # of the posterior's mass, in modes that are not in the guide
MAX_OUTSIDE = 0.02  # of that mass, where the guide hardly draws, for its draws to be good; beyond, MAX_MISSED counts
MAX_UNSEEN = 0.05
MAX_LOST = 0.2  # of the searches
MIN_ENDED = 30  # searches that tell something
MAX_MARGINALS = 2000  # coordinates; the adapters keep the draws of no more than these, unless there is a reference


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search for modes that the guide did not draw says of it: see :mod:`flowppl.inference.modes`.

    Args:
        num_searches: the number of points from which was searched.
        num_ended: the number of searches that ended in a mode; others went on for ever, or were cut short.
        num_modes: the number of modes found that hold a thousandth of the mass or more.
        num_held: the number of modes that the guide was made for.
        missing: the share of the posterior's mass, near those modes, that is not in the guide.
        unseen: the share of searches that a further one has, by an estimate, of meeting a mode not seen so far.
        outside: the share of the posterior's mass in places where the guide has less than a twentieth of its density,
            by draws that go far out: see :mod:`flowppl.inference.outside`.
    """

    num_searches: int
    num_ended: int
    num_modes: int
    num_held: int
    missing: float
    unseen: float
    outside: float = 0.0

    def __str__(self):
        if not self.num_searches:
            return "none were searched for"
        modes = "one mode" if self.num_modes == 1 else f"{self.num_modes} modes"
        if self.unseen > MAX_UNSEEN:
            if self.num_ended < MIN_ENDED:
                return f"{modes} so far: the search was cut short, as {self.num_ended} of {self.num_searches} had ended"
            return f"{modes} so far: {self.num_searches} searches kept finding others"
        found = "met no other" if self.num_modes == 1 else "met no others"
        lost = self.num_searches - self.num_ended
        cut = f", but {lost} of them reached no mode" if lost > MAX_LOST * self.num_searches else ""
        return f"{modes}; {self.num_searches} searches {found}{cut}"

    @property
    def fault(self) -> str:
        """What the guide lacks, and what to do; empty if it lacks nothing that was found."""
        if self.unseen > MAX_UNSEEN and self.num_ended >= MIN_ENDED:
            return (
                f"There are more modes than could be found: {self.num_modes} are known, and about {self.unseen:.0%} "
                "of further searches would meet another. Break what makes them alike, such as by an order on the means "
                "of a mixture, or run a sampler that is made for many modes."
            )
        if self.missing > MAX_MISSING and self.num_held >= self.num_modes:
            return (
                f"About {self.missing:.0%} of the mass, near the modes that were found, is not in the guide: train it "
                "longer, or use fit."
            )
        if self.missing > MAX_MISSING:
            return (
                f"Another mode, or more, with about {self.missing:.0%} of the mass, is not in the guide: the search "
                f'found {self.num_modes}, and the guide was made for {self.num_held}. Fit with num_modes="auto", or '
                "a larger number."
            )
        return ""


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis:
    """What :func:`diagnose` found; ``print`` shows it as a table, with the verdict and what to do.

    ========================= =======================================================================================
    ``verdict``               when
    ========================= =======================================================================================
    ``"good"``                k-hat is below its threshold, the gap is at most 0.05 nats, at least half of the draws
                              are effective, and all else is in order; or the gap is below 0.001 nats, and less than
                              0.1% of the posterior was found where the guide hardly draws, if k-hat is below 1
    ``"use with correction"`` k-hat is below its threshold and 100 draws or more are effective: ``resample`` repairs
                              what is wrong
    ``"bulk only"``           k-hat is too large but the gap is small: a few draws in the tails, which spoil a
                              correction and hardly move means; or 2 to 8% of the posterior is where the guide hardly
                              draws
    ``"not judged"``          the model saw a part of its data only, so that the weights carry the noise of the batch
    ``"do not trust"``        otherwise, and whenever a search found modes that are not in the guide, with more than 5%
                              of the mass, or would find more; more than 8% of the posterior is where the guide hardly
                              draws, or of the reference is missed; a flow is
                              inverted with an error above 0.01; or more than a tenth of the draws is not finite
    ========================= =======================================================================================

    Args:
        k_hat: the shape of the tail of the weights, the median over batches.
        k_hat_threshold: what it may be at most, for the number of draws.
        ess: the effective sample size.
        num_draws: the number of draws.
        elbo: the mean log weight.
        elbo_se: its standard error.
        log_evidence: the log of the mean smoothed weight, an estimate of log p(x).
        log_evidence_se: its standard error.
        nonfinite: the share of draws with a weight or a value that is not finite. The ELBO is that of the others, and
            in all else these draws weigh nothing.
        round_trip_error: how badly the flow is inverted numerically, in units of its base; ``None`` if not known.
        comparison: with the reference draws; ``None`` without.
        search: for modes that the guide does not have; ``None`` if there was none.
        marginal_k_hat: for each coordinate :func:`flowppl.diagnostics.marginal_k_hat`, which tells where the guide is
            wrong; ``None`` if the draws are not known, or there are too few or more than 2,000 coordinates.
    """

    k_hat: float
    k_hat_threshold: float
    ess: float
    num_draws: int
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    nonfinite: float
    round_trip_error: float | None = None
    comparison: Comparison | None = None
    search: Search | None = None
    marginal_k_hat: dict[str, float] | None = None

    @property
    def ess_fraction(self) -> float:
        """The effective sample size in relation to the number of draws."""
        return self.ess / self.num_draws

    @property
    def kl_gap(self) -> float:
        """``log_evidence - elbo``: the KL divergence of the guide from the posterior, where k-hat is in order."""
        return self.log_evidence - self.elbo if math.isfinite(self.elbo) else math.inf

    @property
    def verdict(self) -> str:
        """``"good"``, ``"use with correction"``, ``"bulk only"``, ``"not judged"`` or ``"do not trust"``."""
        return self._judge()[0]

    @property
    def advice(self) -> str:
        """What is good, what is not, and what to do next."""
        return self._judge()[1]

    def _judge(self) -> tuple[str, str]:
        if math.isnan(self.k_hat):
            return "not judged", (
                "The weights carry the noise of the batches: pass the arguments by which the model sees all its data."
            )
        seen = self.comparison
        off = seen is not None and (max(seen.mean_error, abs(seen.log_sd_ratio)) > MAX_MOMENT_ERROR or seen.missed > 0)
        close = self.kl_gap <= MAX_GAP and self.ess_fraction >= 0.5
        tail = f"k-hat {self.k_hat:.2f}, limit {self.k_hat_threshold:.2f}"
        if self.nonfinite > MAX_NONFINITE:
            return "do not trust", (
                f"{self.nonfinite:.0%} of the draws are not finite or have no finite weight: look for a support the "
                "guide does not share with the model or for overflow, start with a smaller init_scale, or use float64."
            )
        if self.round_trip_error is not None and self.round_trip_error > MAX_ROUND_TRIP:
            return "do not trust", (
                f"The flow is inverted with an error of {self.round_trip_error:.1g}, so its densities are not exact: "
                "use float64 or fewer layers, or bring data and latents to scales near 1."
            )
        modes = self.search
        if modes is not None and modes.fault:
            return "do not trust", modes.fault
        outside = 0.0 if modes is None else modes.outside
        if outside > MAX_MISSED:
            return "do not trust", (
                f"About {outside:.0%} of the posterior is where the guide hardly draws, in its tails or in a mode that "
                "no search met, and no weights bring that back: use a richer flow or other parameters, or run NUTS."
            )
        if seen is not None and seen.missed > MAX_MISSED:
            return "do not trust", (
                f"The guide misses {seen.missed:.0%} of the reference draws, worst in {seen.worst}: it has lost a mode "
                "or a tail, which no weights bring back; start it wider, use a richer flow, or keep the reference."
            )
        if seen is not None and off and close:
            return "do not trust", (
                f"The weights are fine, but {seen.worst} disagrees with the reference: the guide has lost a part of "
                "the posterior, or the reference is not of this model or has not converged."
            )
        # Where there is nothing left to correct, and nothing far out, the shape of the tail does not matter.
        is_exact = max(self.kl_gap, outside) < NO_GAP and modes is not None and modes.num_searches > 0
        if self.k_hat > (1 if is_exact else self.k_hat_threshold):
            # A lost mode looks like this too, but with weights that have no mean; unless it was looked for.
            is_searched = modes is not None and modes.num_ended >= MIN_ENDED
            if close and (self.k_hat < 1 or seen is not None or is_searched):
                return "bulk only", (
                    f"Means and central intervals can be used as they are, but rare draws have far too large weights "
                    f"({tail}): do not resample or read off tail probabilities; train longer or use a richer flow."
                )
            return "do not trust", (
                f"The guide misses mass of the posterior ({tail}), which a correction cannot repair: train longer, use "
                "a richer flow or a better start, or run NUTS."
            )
        if outside > MAX_OUTSIDE and self.ess >= MIN_ESS:
            use = "as it is" if close else "after resample"
            return "bulk only", (
                f"About {outside:.0%} of the posterior is where the guide hardly draws, in its tails or in a mode that "
                f"no search met. Its middle can be used {use}, but wide intervals and tail probabilities are wrong, "
                "and no weights bring them back: use a richer flow or other parameters, or run NUTS."
            )
        if close and not self.nonfinite:
            unseen = ""
            if modes is not None and modes.num_searches:
                share = min(1.0, 3 / max(modes.num_ended, 1))  # by the rule of three, of 95% confidence
                found = str(modes).capitalize()
                unseen = f" {found}. A mode that fewer than {share:.0%} of searches meet may be missing."
            elif not seen:
                unseen = " A mode that the guide never visits would not show; reference draws tell."
            return "good", f"The draws can be used as they are.{unseen}"
        if self.ess < MIN_ESS:
            return "do not trust", (
                f"Only {self.ess:.0f} of {self.num_draws} draws are effective: train longer or use a richer flow; or "
                f"raise num_samples and resample, which the weights allow ({tail})."
            )
        dropped = f" and {self.nonfinite:.2%} of its draws are not finite" if self.nonfinite else ""
        return "use with correction", (
            f"The guide is {self.kl_gap:.2g} nats from the posterior{dropped}, but its weights can repair that "
            f"({tail}): take draws from resample, or train longer."
        )

    def __repr__(self):
        numbers = f"k_hat={self.k_hat:.2f}, ess_fraction={self.ess_fraction:.2f}, kl_gap={self.kl_gap:.3f}"
        return f"Diagnosis({self.verdict!r}, {numbers})"

    def __str__(self):
        rows = {
            "k-hat": f"{self.k_hat:.2f} (limit {self.k_hat_threshold:.2f})",
            "effective draws": f"{self.ess:.0f} of {self.num_draws} ({self.ess_fraction:.0%})",
            "ELBO": f"{self.elbo:.3f} ± {self.elbo_se:.3f}",
            "log evidence": f"{self.log_evidence:.3f} ± {self.log_evidence_se:.3f}",
            "gap": f"{self.kl_gap:.3f} nats",
            "not finite": f"{self.nonfinite:.2%} of the draws",
        }
        if self.round_trip_error is not None:
            rows["round trip"] = f"{self.round_trip_error:.1g}"
        if self.search is not None:
            rows["modes"] = str(self.search)
            if self.search.outside >= 0.001:
                rows["outside"] = f"{self.search.outside:.1%} of the posterior is where the guide hardly draws"
        if self.comparison is not None:
            seen = self.comparison
            rows["reference"] = (
                f"means off by up to {seen.mean_error:.2f} sd, sds by a factor of {math.exp(seen.log_sd_ratio):.2f}, "
                f"{seen.missed:.0%} missed, worst in {seen.worst}"
            )
            if seen.nonfinite:
                rows["reference"] += f"; {seen.nonfinite:.2%} of it is not finite"
        if self.marginal_k_hat:
            shapes = self.marginal_k_hat
            num_above = sum(shape > self.k_hat_threshold for shape in shapes.values())
            above = f", above the limit in {num_above} of {len(shapes)}" if num_above else ""
            worst = max(shapes, key=shapes.__getitem__)
            where = f", in {worst}" if shapes[worst] >= 0.1 else ""  # below that no tail is heavier than another
            rows["marginals"] = f"k-hat up to {shapes[worst]:.2f}{where}{above}"
        table = "\n".join(f"  {name:<16} {value}" for name, value in rows.items())
        return f"{self.verdict}\n{table}\n{self.advice}"


def diagnose(
    log_weights, *, num_batches: int = NUM_BATCHES, round_trip_error: float | None = None, draws=None, reference=None
) -> Diagnosis:
    r"""Say whether a guide can be trusted, from the importance weights of its draws.

    No single number tells: a guide that lost a mode has a fine k-hat, and a guide with a tiny KL divergence can have a
    large one from a few draws. So this combines k-hat, the effective sample size, the gap between the log evidence and
    the ELBO, what is not finite, and a comparison with reference draws if there are any.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z), one for each draw.
        num_batches: the number of batches over which to take the median of k-hat.
        round_trip_error: :math:`\max |f^{-1}(f(x)) - x| / (1 + |x|)` over draws of the base, for a flow.
        draws: draws of the guide: for each site an array ``(n, ...)``. If they are those that the weights belong to,
            there is a k-hat for each marginal.
        reference: reference draws of the same sites, such as those of NUTS, to compare ``draws`` with.

    Returns:
        A :class:`Diagnosis`.

    Raises:
        ValueError: if a batch has fewer than 25 draws, ``reference`` is given without ``draws``, or ``draws`` fit
            neither the weights nor a reference.

    References:
        Yao, Vehtari, Simpson, Gelman: Yes, but Did It Work?, 2018, arXiv 1802.02538. Huggins, Kasprzak, Campbell,
        Broderick: Validated Variational Inference via Practical Posterior Error Bounds, 2020, arXiv 1910.04102.

    Example:
        >>> import numpy as np
        >>> from flowppl.diagnostics import diagnose
        >>> z = np.random.default_rng(0).normal(size=10_000)
        >>> diagnose(0.5 * z).verdict, diagnose(0.49 * z**2).verdict
        ('use with correction', 'do not trust')
    """
    log_weights = as_weights(log_weights)
    batch_size("diagnose", log_weights, num_batches)
    if draws is None and reference is not None:
        raise ValueError("diagnose needs both draws and reference for a comparison; draws are missing")
    finite = log_weights[np.isfinite(log_weights)]
    nonfinite = 1 - len(finite) / len(log_weights)
    comparison = marginals = None
    if draws is not None:
        own = all(np.shape(value)[:1] == log_weights.shape for value in draws.values())
        if reference is not None:
            comparison = compare(draws, reference)
        if len(log_weights) >= MIN_MARGINAL and (own or reference is None):
            marginals = marginal_k_hat(log_weights, draws)
        shares = [float(np.mean(~np.isfinite(values))) for values in coordinates(draws).values()]
        nonfinite = max([nonfinite, *shares])
    weights, _, log_evidence = weigh(log_weights)
    ess = effective(weights)
    known = len(finite) >= 2
    return Diagnosis(
        k_hat=k_hat(finite, num_batches) if len(finite) >= MIN_BATCH * num_batches else math.inf,
        k_hat_threshold=k_hat_threshold(len(log_weights)),
        ess=ess,
        num_draws=len(log_weights),
        elbo=float(finite.mean()) if known else -math.inf,
        elbo_se=float(finite.std(ddof=1) / math.sqrt(len(finite))) if known else math.inf,
        log_evidence=log_evidence,
        # The relative error of a mean of weights with this effective sample size.
        log_evidence_se=math.sqrt(max(1 / ess - 1 / len(log_weights), 0)) if known else math.inf,
        nonfinite=nonfinite,
        round_trip_error=None if round_trip_error is None else float(np.nan_to_num(round_trip_error, nan=np.inf)),
        comparison=comparison,
        marginal_k_hat=marginals,
    )


def check_covered(missing: set[str]) -> None:
    """Raise ValueError if the guide leaves out latent sites of the model, for then there are no weights."""
    if missing:
        raise ValueError(
            f"the guide does not draw these latent sites of the model: {', '.join(sorted(missing))}. If they are data, "
            "the argument that they are observed from was left out. Else give the model that the guide was made for, "
            "with discrete sites summed out, or add a guide for them"
        )


def is_subsampled(plates: Iterable[tuple[str, int, int]]) -> bool:
    """Whether one of the plates is: of each the name, the number of members in the batch, and of all members."""
    return any(size != full_size for _, size, full_size in plates)


def check_whole(plates: Iterable[tuple[str, int, int]]) -> None:
    """Raise ValueError if one of the plates is subsampled, for then the weights carry the noise of the batch."""
    for name, size, full_size in plates:
        if size != full_size:
            raise ValueError(
                f"with these arguments the model sees {size} of the {full_size} members of the plate {name!r}, so the "
                "weights carry the noise of the batch. Pass the arguments by which it sees all of them (of a fit to "
                "batches, call diagnose(...) or resample(...) of the package with its guide)"
            )
