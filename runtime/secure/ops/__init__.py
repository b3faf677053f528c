"""Operations as JAX, one file per family; needs jax."""
