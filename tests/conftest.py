"""Settings of the unit tests."""

import pytest
import torch
from hypothesis import settings

# Property tests: a few examples each, and no limit on the time that one takes.
settings.register_profile("course", max_examples=25, deadline=None)
settings.load_profile("course")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """A test draws the same numbers whichever tests ran before it."""
    torch.manual_seed(0)
