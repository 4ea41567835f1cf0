"""Experiments: ways to train, their runs, and what is inferred from them.

An arm (what is trained) with a rate and a seed is a run; `covpool compare`, `study` and `reproduce`
each plan runs, train those that are missing, and summarise them with intervals.
"""
