"""How gradients of different ranks become one mean."""
