"""Passes over the jaxpr of a training step: trace, simplify, sharding rules, lowering."""
