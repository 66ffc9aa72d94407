"""The statistics of experiments: pure functions over numbers, without clock, log or setting.

`moments` and `quantiles` are what is kept of an arm; `estimates` and `cuped` turn them into its
value; `strata` puts the splits between two arms together; `effects` compares them and gives the
fixed-horizon interval; `sequential` gives what may be looked at any time and acted upon; `arms`
does all of it by one call. `harm`, `sample_ratio`, `multiple` and `power` stand beside.
"""
