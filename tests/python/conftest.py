"""What every Python test gets: a fixed seed, and no network."""

import os

import pytest

# Before transformers or datasets are imported: a test that needs the network is a broken test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds torch before each test, so that no test depends on which ones ran before it."""
    value = 20_240_501
    torch.manual_seed(value)
    return value
