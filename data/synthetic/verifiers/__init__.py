"""What decides without a model whether a candidate is right."""
