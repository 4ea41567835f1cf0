"""`covpool probe`: which pooling is best on the features of a frozen backbone.

`features.py` computes the backbone's feature maps once and keeps them on disk; `reduction.py`
learns the channel reduction that all poolings share; `heads.py` trains the classifiers behind the
poolings; `plan.py` says which runs there are, `estimate.py` what they take, and `work.py` makes
them; `summary.py` compares them.

Not to be confused with `covpool.train.probes`, which measure something along a training.
"""
