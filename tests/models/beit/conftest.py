"""Fixtures of the tests of BEiT in Flax."""

import pytest

from flax_networks import TWO, saved


@pytest.fixture(scope="module")
def quick_compiler():
    """XLA compiles more than it computes here."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def strict_ranks():
    """Broadcasting between arrays of different rank is an error."""
    import jax

    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """One small network for the tests that do not care which."""
    from headstart import FlaxBeitForImageClassification

    folder = tmp_path_factory.mktemp("classifier")
    saved(folder, **TWO, use_mask_token=True)
    return FlaxBeitForImageClassification.from_pretrained(folder)
