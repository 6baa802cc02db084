"""Frozen values that every stage of autopar speaks: meshes, layouts, plans, errors."""
