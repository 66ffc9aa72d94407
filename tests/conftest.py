"""What holds for every test: hypothesis sets no deadlines, for no test may depend on how busy the
machine is.

Simulations of thousands of requests are marked `no_cover`: to trace their lines, which other tests
run as well, would double what they take.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")
