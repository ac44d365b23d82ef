"""What ``bench.py`` measures: the peers, how they take turns, and the tables."""
