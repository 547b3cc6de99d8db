import pytest
import torch


@pytest.fixture(autouse=True)
def with_gradients():
    with torch.enable_grad():
        yield
