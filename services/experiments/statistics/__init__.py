"""The statistics of experiments: pure functions over numbers, without clock, log or setting.

`moments` are what a stream worker keeps; `estimates` and `cuped` turn them into an arm's value;
`effects` compares two arms and gives the fixed-horizon interval; `sequential` gives what may be
looked at any time and acted upon; `strata` puts the steps of a ramp together. `quantiles`,
`sample_ratio`, `multiple` and `power` stand beside.
"""
