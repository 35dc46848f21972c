"""What holds for all tests."""

from hypothesis import settings

# A machine under load is slow; that is no failure of what is tested. Multi-process tests have deadlines of their own.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
