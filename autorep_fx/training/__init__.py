"""Training of gates, polynomials and weights."""
