"""One file an experiment: its docstring is the lab note.

`CONFIG` is the configuration, `QUICK` one that takes seconds to two minutes on two CPU cores, and `CHECKS` the claims
that the results are to show. Files whose names begin with `_` are no experiments, but what several share.
"""
