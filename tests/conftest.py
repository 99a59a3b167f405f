"""How thoroughly properties are searched: `make check` asks for few examples, every other run for all."""

import os

from hypothesis import settings

settings.register_profile("full", deadline=None)
settings.register_profile("few", max_examples=15, stateful_step_count=15, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "full"))
