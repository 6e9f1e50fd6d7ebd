"""Network policies without a run: learned from one, tried on one, held to what is expected of them."""
