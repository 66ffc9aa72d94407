"""Off-policy evaluation: what would another policy have earned on the lists that were logged?

`estimators` holds the estimators of lists (RIPS, item-position), `weights` the importance weights
and their health, `policy_value` what they return and differences of it on one log. An estimator
returns a `PolicyValue` or refuses with a sentence: a number from too little support is worse than
none.

What is not guaranteed: that clicks of other users, or of the same user later, would have been the
same under the target policy; and anything where the logged propensities are not the true ones.
"""
