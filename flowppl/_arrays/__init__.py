"""What the mathematics stands on: one array namespace for all libraries, trees of arrays, roots of equations."""
