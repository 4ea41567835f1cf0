"""Studies: ways to train compared on one data set, with rates chosen on validation images.

A study is a YAML file; `covpool study FILE` plans, tunes, trains and summarises it.
"""
