"""What several test files use. Test files import from here, never from each other."""

import hypothesis

FULL = 100  # examples of the profile ``thorough``, at which a test runs as many as it states


def examples(number: int, **options: object) -> hypothesis.settings:
    """Hypothesis's settings for a test: ``number`` examples at full depth, fewer in ``ci``."""
    share = hypothesis.settings.default.max_examples / FULL
    return hypothesis.settings(max_examples=max(10, round(number * share)), **options)
