"""Settings of the unit tests."""

import pytest
import torch
from hypothesis import settings

# Property tests: a few examples each, and no limit on the time that one takes.
settings.register_profile("course", max_examples=25, deadline=None)
settings.load_profile("course")

# Every seed is kept, with the call stack, for each kind of accelerator that may still appear: a
# third of the time of a short test. Where there is none, there is nothing to seed.
if not torch.accelerator.is_available():
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        kind.manual_seed_all = lambda seed: None


@pytest.fixture(autouse=True)
def same_random_numbers():
    """A test draws the same numbers whichever tests ran before it."""
    torch.manual_seed(0)
