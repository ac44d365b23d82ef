"""What all trainings in passes over data share beyond their loop: checkpoints, and weights that are averaged."""
