"""Off-policy evaluation: what would another policy have earned on the requests that were logged?

`logs` holds what was logged, `weights` the importance weights and their health, `actions` the
estimators for one action per decision (IPS, SNIPS, DR), `slates` those for whole lists (RIPS, DR,
item-position, pseudo-inverse), `comparison` the differences of estimates on one log. Every
estimator returns an `Estimate` or refuses with a sentence: a number from too little support is
worse than none.

What is not guaranteed: that clicks of other users, or of the same user later, would have been the
same under the target policy; and anything where the logged propensities are not the true ones.
"""
