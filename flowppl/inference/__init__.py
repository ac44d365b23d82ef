"""What the guides, ``fit`` and ``fit_density`` of both languages share: starts, training, weights and verdicts."""
